package cli

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/safeconduct/safeconduct/api/safeconduct/v1"
	"github.com/safeconduct/safeconduct/attestation/refusal"
)

// provocation is a test that makes the code refuse for a reason, and looks for that reason.
type provocation struct{ file, test string }

// provocations has one for every reason: a new reason comes with a test that provokes it.
func provocations() map[v1.Reason]provocation {
	const node, session, escrow, handshake, rpc = "services/node/", "services/node/session/", "services/node/escrow/", "attestation/handshake/", "services/rpcerror/"
	return map[v1.Reason]provocation{
		v1.Reason_REASON_UNSPECIFIED:             {rpc + "rpcerror_test.go", "TestAReasonOfALaterReleaseIsUnspecified"},
		v1.Reason_REASON_INTERNAL:                {node + "reasons_test.go", "TestAStateDirectoryThatFailsIsAnInternalErrorWithItsCauseInTheLogOnly"},
		v1.Reason_REASON_INVALID_REQUEST:         {node + "standing_test.go", "TestPreflightsThatMakeNoSense"},
		v1.Reason_REASON_CALLER_NOT_ALLOWED:      {node + "local/local_test.go", "TestOnlyListedUidsMayCall"},
		v1.Reason_REASON_PEER_UNAVAILABLE:        {node + "node_test.go", "TestAPeerThatDiesAtAnyStepLeavesTheVMOnTheSource"},
		v1.Reason_REASON_PEER_REFUSED:            {node + "node_test.go", "TestAPeerThatThePolicyDoesNotAcceptIsRefused"},
		v1.Reason_REASON_PROTOCOL_VIOLATION:      {handshake + "session_test.go", "TestExchangeMessagesOutOfTurnAreRefused"},
		v1.Reason_REASON_SAME_NODE:               {node + "clock_test.go", "TestSourceAndDestinationAreTwoNodes"},
		v1.Reason_REASON_MODE_MISMATCH:           {handshake + "handshake_test.go", "TestOpeningsThatAreNotAdmitted"},
		v1.Reason_REASON_SUITE_MISMATCH:          {handshake + "handshake_test.go", "TestOpeningsThatAreNotAdmitted"},
		v1.Reason_REASON_UNKNOWN_PEER:            {node + "standing_test.go", "TestPreflightsThatMakeNoSense"},
		v1.Reason_REASON_QUOTE_INVALID:           {node + "reasons_test.go", "TestWhatIsNoQuoteIsRefusedAsOne"},
		v1.Reason_REASON_QUOTE_NOT_BOUND:         {node + "node_test.go", "TestEvidenceIsBoundToTheNonceAndJudgedByPolicy"},
		v1.Reason_REASON_COLLATERAL_INVALID:      {node + "standing_test.go", "TestNoKeyIsReleasedOnCollateralThatHasExpired"},
		v1.Reason_REASON_CERTIFICATE_REVOKED:     {node + "standing_test.go", "TestAPlatformRevokedMeanwhileIsNotArmed"},
		v1.Reason_REASON_MEASUREMENT_NOT_ALLOWED: {node + "node_test.go", "TestAPeerThatThePolicyDoesNotAcceptIsRefused"},
		v1.Reason_REASON_DEBUG_ENCLAVE:           {node + "reasons_test.go", "TestADebugEnclaveIsRefusedByItsPeer"},
		v1.Reason_REASON_TCB_NOT_ACCEPTED:        {node + "standing_test.go", "TestAPolicyThatNoLongerAcceptsThePeerEndsItsSessions"},
		v1.Reason_REASON_PLATFORM_NOT_ENROLLED:   {node + "node_test.go", "TestAPeerThatThePolicyDoesNotAcceptIsRefused"},
		v1.Reason_REASON_TPM_QUOTE_INVALID:       {node + "integrity_test.go", "TestATPMThatWasResetSinceIsRefusedAtArm"},
		v1.Reason_REASON_INTEGRITY_MISMATCH:      {node + "node_test.go", "TestAPeerThatThePolicyDoesNotAcceptIsRefused"},
		v1.Reason_REASON_INTEGRITY_STALE:         {node + "reasons_test.go", "TestAnAppraisalThatIsOldForTheDestinationIsNotArmed"},
		v1.Reason_REASON_KEY_CONFIRMATION_FAILED: {handshake + "handshake_test.go", "TestAKeyConfirmationOfAnotherHandshakeIsRefused"},
		v1.Reason_REASON_NO_SESSION:              {node + "node_test.go", "TestWithoutAnArmedSessionNothingCrosses"},
		v1.Reason_REASON_NO_ARMED_SESSION:        {node + "node_test.go", "TestWithoutAnArmedSessionNothingCrosses"},
		v1.Reason_REASON_WRONG_STATE:             {node + "clock_test.go", "TestASecondMigrationOfOneInstanceIsRefused"},
		v1.Reason_REASON_SESSION_EXPIRED:         {session + "table_test.go", "TestSessionsExpire"},
		v1.Reason_REASON_ALREADY_USED:            {node + "clock_test.go", "TestAMigrationIDServesOnce"},
		v1.Reason_REASON_SESSION_CONFLICT:        {node + "clock_test.go", "TestASecondMigrationOfOneInstanceIsRefused"},
		v1.Reason_REASON_LIMIT_EXCEEDED:          {session + "table_test.go", "TestTheTableIsBounded"},
		v1.Reason_REASON_CIPHERTEXT_INVALID:      {node + "node_test.go", "TestAnAlteredOrForeignBlobEndsTheSession"},
		v1.Reason_REASON_CIPHERTEXT_TRUNCATED:    {node + "node_test.go", "TestAnAlteredOrForeignBlobEndsTheSession"},
		v1.Reason_REASON_SEALED_DATA_INVALID:     {escrow + "escrow_test.go", "TestABlobThatDoesNotOpenStopsOnlyItsOwnVM"},
		v1.Reason_REASON_MEASUREMENT_FAILED:      {node + "reasons_test.go", "TestAHostThatCannotBeMeasuredSaysSo"},
		v1.Reason_REASON_QUOTE_FAILED:            {node + "reasons_test.go", "TestAQuotingDaemonThatDiesIsNoticedAndNamed"},
		v1.Reason_REASON_NO_SECRET:               {escrow + "escrow_test.go", "TestASecretIsEscrowedOnceUnderItsName"},
		v1.Reason_REASON_POLICY_REFUSED:          {node + "export_test.go", "TestNoKeyIsExportedByDefault"},
		v1.Reason_REASON_DRAINING:                {node + "standing_test.go", "TestADrainWaitsForSessionsAndThenStopsTheService"},
		v1.Reason_REASON_ABORTED:                 {node + "reasons_test.go", "TestASessionThatWasAbortedAnswersSoToWhoAsksAgain"},
		v1.Reason_REASON_RESTARTED:               {node + "reasons_test.go", "TestASessionThatIsOpenWhenTheServiceStopsEndsAsRestarted"},
		v1.Reason_REASON_UNSAFE_MIGRATION:        {node + "node_test.go", "TestWithoutAnArmedSessionNothingCrosses"},
		v1.Reason_REASON_POLICY_ROLLED_BACK:      {node + "standing_test.go", "TestAnOlderPolicyIsRefusedAfterARestartToo"},
		v1.Reason_REASON_SECRET_CONFLICT:         {escrow + "escrow_test.go", "TestASecretIsEscrowedOnceUnderItsName"},
		v1.Reason_REASON_NO_RECEIPT:              {node + "receipts_test.go", "TestBothNodesKeepTheSameReceiptOfAMigrationAndItVerifiesOffline"},
		v1.Reason_REASON_HELPER_NOT_ATTACHED:     {node + "helpers_test.go", "TestAVMWhoseSwtpmHasNoHelperIsNotArmed"},
		v1.Reason_REASON_HELPER_CONFLICT:         {node + "helpers_test.go", "TestStateCrossesForTheVMsOwnHelperOnly"},
		v1.Reason_REASON_STATE_ROLLED_BACK:       {escrow + "state_test.go", "TestAnOldStatePutBackIsRefusedUntilAnOperatorAcceptsIt"},
		v1.Reason_REASON_STATE_NOT_RECORDED:      {escrow + "state_test.go", "TestACrashBetweenWriteAndRecordIsNoticed"},
		v1.Reason_REASON_NO_STATE_KEY:            {escrow + "state_test.go", "TestACopiedStateHasNoKeyElsewhere"},
		v1.Reason_REASON_STATE_KEY_UNUSED:        {node + "staterest_test.go", "TestADestinationWithoutTheModeTakesNoStateOfAVMThatHasIt"},
	}
}

func TestEveryReasonHasATestThatProvokesItAndASectionThatExplainPrints(t *testing.T) {
	provoked := provocations()
	for n := range v1.Reason_name {
		reason := v1.Reason(n)
		p, ok := provoked[reason]
		if !ok {
			t.Errorf("%s: write a test that provokes it, and name it in provocations", refusal.Name(reason))
			continue
		}
		if names := constantsOf(t, p); !names["Reason_"+reason.String()] {
			t.Errorf("%s: %s in %s does not look for it", refusal.Name(reason), p.test, p.file)
		}
		if got := run(t, "explain", refusal.Name(reason)).exits(t, ExitOK).out; !strings.Contains(got, "What to do:") || !strings.Contains(got, "Usual causes:") {
			t.Errorf("%s: explain prints %q", refusal.Name(reason), got)
		}
	}
	for reason := range provoked {
		if _, known := v1.Reason_name[int32(reason)]; !known {
			t.Errorf("there is no reason %v", reason)
		}
	}
}

// constantsOf are the constants of package v1 that a test function names.
func constantsOf(t *testing.T, p provocation) map[string]bool {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join("..", "..", filepath.FromSlash(p.file)), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || f.Name.Name != p.test || f.Body == nil {
			continue
		}
		names := map[string]bool{}
		ast.Inspect(f.Body, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "v1" {
					names[s.Sel.Name] = true
				}
			}
			return true
		})
		return names
	}
	t.Errorf("there is no test %s in %s", p.test, p.file)
	return nil
}
