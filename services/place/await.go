package place

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Cluster is the Kubernetes API as a pod sees it.
type Cluster struct {
	// URL of the API server, and Token of the pod's service account.
	URL, Token string
	Client     *http.Client
}

// maxAnswer bounds an answer of the API server, in bytes.
const maxAnswer = 1 << 20

// InCluster is the cluster that this pod runs in, by the files that Kubernetes mounts into it.
func InCluster(dir string, getenv func(string) string) (Cluster, error) {
	token, err := os.ReadFile(filepath.Join(dir, "token"))
	if err != nil {
		return Cluster{}, fmt.Errorf("service account: %w", err)
	}
	pem, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
	if err != nil {
		return Cluster{}, fmt.Errorf("service account: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return Cluster{}, fmt.Errorf("service account: %s holds no certificate", filepath.Join(dir, "ca.crt"))
	}
	host, port := getenv("KUBERNETES_SERVICE_HOST"), getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return Cluster{}, fmt.Errorf("KUBERNETES_SERVICE_HOST and _PORT are not set: this is not a pod")
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	return Cluster{URL: "https://" + host + ":" + port, Token: strings.TrimSpace(string(token)),
		Client: &http.Client{Transport: transport, Timeout: 10 * time.Second}}, nil
}

// daemonSet is what is read of one.
type daemonSet struct {
	Metadata struct {
		Generation int64 `json:"generation"`
	} `json:"metadata"`
	Status struct {
		Observed int64 `json:"observedGeneration"`
		Desired  int   `json:"desiredNumberScheduled"`
		Ready    int   `json:"numberReady"`
	} `json:"status"`
}

// AwaitDaemonSet waits until a DaemonSet has a ready pod on each of its nodes. Errors of the API server are waited out until ctx ends.
func (c Cluster) AwaitDaemonSet(ctx context.Context, namespace, name string, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		d, err := c.daemonSet(ctx, namespace, name)
		if err == nil {
			if d.Status.Observed == d.Metadata.Generation && d.Status.Observed > 0 && d.Status.Ready == d.Status.Desired {
				return nil
			}
			err = fmt.Errorf("%d of %d nodes are done", d.Status.Ready, d.Status.Desired)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("daemonset %s/%s: %w", namespace, name, err)
		case <-tick.C:
		}
	}
}

func (c Cluster) daemonSet(ctx context.Context, namespace, name string) (*daemonSet, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL+"/apis/apps/v1/namespaces/"+namespace+"/daemonsets/"+name, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+c.Token)
	resp, err := c.Client.Do(req)
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if cerr := resp.Body.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the API server answered %s", resp.Status)
	}
	d := new(daemonSet)
	return d, json.Unmarshal(raw, d)
}
