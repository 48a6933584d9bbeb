package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

const (
	tunnelPort = 7444
	// tunnelDir is where the driver looks for the tunnel's sockets unless it is told otherwise.
	tunnelDir = "/run/safeconduct/tunnel"
)

// inTheTunnel migrates a server whose memory, disk and vTPM all cross through safeconduct-tunnel.
func inTheTunnel(ctx context.Context, c *cloud, note func(string, ...any)) error {
	was := c.safeconductConf()
	err := c.eachCompute(ctx, func(h *compute) error {
		if _, err := h.Run(ctx, "mkdir", "-p", tunnelDir); err != nil {
			return err
		}
		if err := c.nodes.StartTunnel(ctx, h.node, ""); err != nil {
			return err
		}
		return h.reconfigure(ctx, func(s *settings) { s.Safeconduct = was + "tunnel = true\n" })
	})
	if err == nil {
		err = thereAndBack(kind{})(ctx, c, note)
	}
	if err == nil {
		err = c.carried(note)
	}
	return errors.Join(err, c.eachCompute(context.WithoutCancel(ctx), func(h *compute) error {
		if h.node.Tunnel != nil {
			h.node.Tunnel.Stop()
		}
		return h.reconfigure(ctx, func(s *settings) { s.Safeconduct = was })
	}))
}

// carried checks that each tunnel has sent a server whole, by both channels.
func (c *cloud) carried(note func(string, ...any)) error {
	for _, h := range c.computes {
		sent, err := tunnelled(filepath.Join(h.node.Dir, "tunnel.log"))
		if err != nil {
			return err
		}
		if sent["migration"] < 1<<20 || sent["disks"] == 0 {
			return fmt.Errorf("the tunnel of %s has sent %v bytes: not a server", h.Name, sent)
		}
		note("the tunnel of %s has sent %.1f MB of memory and vTPM, %.1f kB of disks", h.Name, float64(sent["migration"])/1e6, float64(sent["disks"])/1e3)
	}
	return nil
}

// tunnelled is how much a tunnel has sent, by channel, on connections that have ended whole.
func tunnelled(log string) (map[string]int64, error) {
	f, err := os.Open(log)
	if err != nil {
		return nil, err
	}
	defer hangUp(f)
	sent := map[string]int64{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var line struct {
			Msg, Channel string
			Sent         int64 `json:"sent_bytes"`
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err == nil && line.Msg == "a connection of the tunnel ended" {
			sent[line.Channel] += line.Sent
		}
	}
	return sent, lines.Err()
}
