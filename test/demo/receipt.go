package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
)

// receipt takes the destination's receipt of the migration and has the command line verify it, as an auditor would: with the policy and the root, and
// neither node.
func (d *demo) receipt(ctx context.Context) error {
	client := v1.NewReceiptServiceClient(d.nodes["compute2"].Conn)
	var last *v1.ReceiptSummary
	for deadline := time.Now().Add(10 * time.Second); last == nil || last.GetMigrationId() != d.report.MigrationID; {
		if time.Now().After(deadline) {
			return errors.New("compute2 has no receipt of the migration")
		}
		all, err := client.ListReceipts(ctx, &v1.ListReceiptsRequest{InstanceId: instance})
		if err != nil {
			return err
		}
		if n := len(all.GetReceipts()); n > 0 {
			last = all.GetReceipts()[n-1]
		}
	}
	if !last.GetBothSigned() || last.GetOutcome() != "committed" {
		return fmt.Errorf("the receipt of the migration is %v", last)
	}
	export, err := client.ExportReceipt(ctx, &v1.ExportReceiptRequest{ReceiptId: last.GetReceiptId()})
	if err != nil {
		return err
	}
	path := filepath.Join(d.out, "receipt.json")
	if err := os.WriteFile(path, export.GetReceipt(), 0o644); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, filepath.Join(d.bin, "safeconduct"), "receipt", "verify", "--policy", d.cluster.PolicyFile(),
		"--policy-keys", d.cluster.PolicyKeys(), "--simulated-root", d.cluster.Root(), path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("the receipt does not verify: %w\n%s", err, out)
	}
	say("receipt:   %x..., signed by both enclaves, verified offline (%d bytes, %s)", last.GetReceiptId()[:8], len(export.GetReceipt()), path)
	return nil
}
