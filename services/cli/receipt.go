package cli

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/receipt"
)

func receiptCommand(a *app) *cobra.Command {
	c := &cobra.Command{Use: "receipt", Short: "The signed records of migrations that have ended"}
	c.AddCommand(receiptListCommand(a), receiptShowCommand(a), receiptExportCommand(a), receiptVerifyCommand(a))
	return c
}

// receiptPage is how many receipts one call brings; the service gives no more.
const receiptPage = 1000

// receiptList is what receipt list prints.
type receiptList struct {
	Receipts []receiptView `json:"receipts"`
}

type receiptView struct {
	Number      uint64 `json:"number"`
	ReceiptID   string `json:"receipt_id"`
	InstanceID  string `json:"instance_id"`
	MigrationID string `json:"migration_id"`
	Source      string `json:"source_host"`
	Destination string `json:"destination_host"`
	Outcome     string `json:"outcome"`
	At          string `json:"at,omitempty"`
	Mode        string `json:"mode"`
	BothSigned  bool   `json:"both_signed"`
}

func receiptListCommand(a *app) *cobra.Command {
	var instance string
	var after uint64
	var limit uint32
	c := &cobra.Command{
		Use: "list", Short: "List this node's receipts, oldest first", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := receiptList{Receipts: []receiptView{}}
			for left := limit; ; {
				page, err := a.receipts(cmd.Context(), &v1.ListReceiptsRequest{InstanceId: instance, After: after, Limit: min(orMany(left),
					receiptPage)})
				if err != nil {
					return err
				}
				out.Receipts = append(out.Receipts, page...)
				full := len(page) == receiptPage && page[len(page)-1].Number > after
				left -= min(left, uint32(len(page)))
				if !full || (limit > 0 && left == 0) {
					break
				}
				after = page[len(page)-1].Number
			}
			return a.show(out, out.print)
		},
	}
	f := c.Flags()
	f.StringVar(&instance, "instance", "", "only those of the VM with this UUID")
	f.Uint64Var(&after, "after", 0, "number in this node's chain after which to begin")
	f.Uint32Var(&limit, "limit", 0, "at most this many; all without")
	return c
}

func orMany(limit uint32) uint32 {
	if limit == 0 {
		return receiptPage
	}
	return limit
}

func (a *app) receipts(ctx context.Context, req *v1.ListReceiptsRequest) ([]receiptView, error) {
	answer, err := ask(ctx, a, func(ctx context.Context, c *grpc.ClientConn) (*v1.ListReceiptsResponse, error) {
		return v1.NewReceiptServiceClient(c).ListReceipts(ctx, req)
	})
	out := make([]receiptView, 0, len(answer.GetReceipts()))
	for _, x := range answer.GetReceipts() {
		out = append(out, receiptView{
			Number: x.GetNumber(), ReceiptID: hexOf(x.GetReceiptId()), InstanceID: x.GetInstanceId(), MigrationID: x.GetMigrationId(),
			Source: x.GetSourceHost(), Destination: x.GetDestinationHost(), Outcome: x.GetOutcome(), At: stamp(x.GetAt()),
			Mode:       modeName(x.GetMode()),
			BothSigned: x.GetBothSigned(),
		})
	}
	return out, err
}

func (l *receiptList) print(s *sheet) {
	if len(l.Receipts) == 0 {
		s.line("no receipts")
		return
	}
	rows := make([][]string, 0, len(l.Receipts))
	for _, v := range l.Receipts {
		signed := map[bool]string{true: "both", false: "this node only"}[v.BothSigned]
		rows = append(rows, []string{
			strconv.FormatUint(v.Number, 10), v.At, v.InstanceID, v.Source + " > " + v.Destination, v.Outcome, modeWord(v.Mode), signed,
			v.ReceiptID,
		})
	}
	s.rows([]string{"NUMBER", "AT", "INSTANCE", "HOSTS", "OUTCOME", "MODE", "SIGNED BY", "RECEIPT"}, rows)
}

func receiptExportCommand(a *app) *cobra.Command {
	var out string
	c := &cobra.Command{
		Use: "export RECEIPT", Short: "Write one receipt with everything that is needed to verify it without this node", Args: cobra.ExactArgs(1),
		Long: "Write one receipt, as JSON whatever -o says, with everything that is needed to verify it without this node.",
		RunE: func(cmd *cobra.Command, args []string) error {
			export, err := a.export(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.writeNew(out, 0o644, export)
		},
	}
	c.Flags().StringVar(&out, "out", "", "new file to write; standard output without")
	return c
}

// export fetches one receipt by its id in hex.
func (a *app) export(ctx context.Context, text string) ([]byte, error) {
	id, err := hex.DecodeString(text)
	if err != nil || len(id) != 32 {
		return nil, advise(fmt.Errorf("%q is no receipt id: 64 hex digits", text), "see safeconduct receipt list")
	}
	answer, err := ask(ctx, a, func(ctx context.Context, c *grpc.ClientConn) (*v1.ExportReceiptResponse, error) {
		return v1.NewReceiptServiceClient(c).ExportReceipt(ctx, &v1.ExportReceiptRequest{ReceiptId: id})
	})
	return answer.GetReceipt(), err
}

func receiptShowCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show RECEIPT", Short: "Show what one receipt says, without verifying it", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			raw, err := a.export(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			e, err := receipt.ParseExport(raw)
			if err != nil {
				return &failure{err: err, code: ExitInternal, do: "read safeconductd's log on this host"}
			}
			return a.show(e.Decoded, func(s *sheet) {
				s.field("receipt", hexOf(e.ReceiptID))
				s.field("signed by", signers(e))
				printRecord(s, e.Decoded)
				s.blank()
				s.line("NOT VERIFIED: see safeconduct receipt verify")
			})
		},
	}
}

func signers(e *receipt.Export) string {
	switch {
	case len(e.Source.Signature) > 0 && len(e.Destination.Signature) > 0:
		return "both"
	case len(e.Source.Signature) > 0:
		return "the source alone"
	default:
		return "the destination alone"
	}
}
