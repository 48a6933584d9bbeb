package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/google/uuid"
)

// neutron is the least of Neutron with which Nova runs servers that have no ports. Nova asks for ports, extensions and security groups all the same:
// each collection is empty, but for the project's security group "default", which Nova looks up by name when a server boots.
type neutron struct {
	server *http.Server
	done   chan error
}

func serveNeutron() (*neutron, error) {
	l, err := net.Listen("tcp", fmt.Sprintf("%s:%d", world, neutronPort))
	if err != nil {
		return nil, err
	}
	n := &neutron{server: &http.Server{Handler: http.HandlerFunc(answerNeutron), ReadHeaderTimeout: 10 * time.Second}, done: make(chan error, 1)}
	go func() { n.done <- n.server.Serve(l) }()
	return n, nil
}

func (n *neutron) close() error {
	err := n.server.Close()
	if served := <-n.done; !errors.Is(served, http.ErrServerClosed) {
		return errors.Join(err, served)
	}
	return err
}

func answerNeutron(w http.ResponseWriter, r *http.Request) {
	path := strings.Split(strings.Trim(strings.TrimSuffix(r.URL.Path, ".json"), "/"), "/")
	if path[0] != "v2.0" {
		link := object{"rel": "self", "href": url("neutron") + "/v2.0/"}
		reply(w, http.StatusOK, object{"versions": []any{object{"id": "v2.0", "status": "CURRENT", "links": []any{link}}}})
		return
	}
	if r.Method != http.MethodGet || len(path) < 2 {
		reply(w, http.StatusNotFound, object{"NeutronError": object{"type": "NotFound", "message": r.URL.Path, "detail": ""}})
		return
	}
	collection := strings.ReplaceAll(path[1], "-", "_")
	switch {
	case collection == "quotas":
		reply(w, http.StatusOK, object{"quota": object{"port": -1, "network": -1, "security_group": -1, "security_group_rule": -1, "floatingip": -1}})
	case len(path) > 2:
		reply(w, http.StatusNotFound, object{"NeutronError": object{"type": "NotFound", "message": r.URL.Path, "detail": ""}})
	case collection == "security_groups":
		project := r.URL.Query().Get("tenant_id") + r.URL.Query().Get("project_id")
		reply(w, http.StatusOK, object{collection: []any{object{
			"id": uuid.NewSHA1(uuid.NameSpaceDNS, []byte(project)).String(), "name": "default", "tenant_id": project, "project_id": project,
			"description": "", "security_group_rules": []any{},
		}}})
	default:
		reply(w, http.StatusOK, object{collection: []any{}})
	}
}

func reply(w http.ResponseWriter, code int, body object) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // Nova has hung up
}
