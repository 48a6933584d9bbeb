/*
 * The life of a migration session on two node services, for Spin. docs/protocol.md, "After the handshake" and "Session", is what it
 * models; docs/protocol/README.md says what is in it, what is left out, and how it is run (make verify-model).
 *
 * One VM lives on the source S and is to move to the destination D, in up to N attempts, each with a session of its own. Nova drives S; QEMU
 * and libvirt move the VM; requests and answers between S and D are lost, late or repeated; either node service crashes and starts again;
 * a session ends by itself at any moment (its time is up, the policy changed, a caller aborts it); whoever holds a sealed blob offers
 * it to D whenever he likes.
 *
 * Each property is a variable that is set when the property is broken; Spin then names it. Every -DMUTANT_... is a plausible mistake, and
 * test/model/run.sh insists that Spin finds each, by the property that is meant to find it.
 */

#define N 2 /* sessions, and migration ids that Nova chooses from */
#ifndef ATTEMPTS
#define ATTEMPTS N
#endif

/* States and events, by the numbers of services/node/session. */
#define Refused 0
#define Offered 1
#define Attested 2
#define Appraised 3
#define Armed 4
#define Transferring 5
#define Committed 6
#define Aborted 7

#define Attest 1
#define Appraise 2
#define Arm 3
#define Transfer 4
#define Commit 5
#define Abort 6
#define Expire 7
#define Restart 8

#define LIVE(s) ((s) == Armed || (s) == Transferring)
#define ENDED(s) ((s) == Committed || (s) == Aborted)
#define OPEN(s) ((s) != 0 && !ENDED(s))

/* The state machine. test/model compares what stands between the marks with session.Next, cell by cell. */
inline next(s, e, out) {
	if
	/* transitions: begin */
	:: s == Offered && e == Attest -> out = Attested
	:: s == Offered && e == Abort -> out = Aborted
	:: s == Offered && e == Expire -> out = Aborted
	:: s == Offered && e == Restart -> out = Aborted
	:: s == Attested && e == Appraise -> out = Appraised
	:: s == Attested && e == Abort -> out = Aborted
	:: s == Attested && e == Expire -> out = Aborted
	:: s == Attested && e == Restart -> out = Aborted
	:: s == Appraised && e == Appraise -> out = Appraised
	:: s == Appraised && e == Arm -> out = Armed
	:: s == Appraised && e == Abort -> out = Aborted
	:: s == Appraised && e == Expire -> out = Aborted
	:: s == Appraised && e == Restart -> out = Aborted
	:: s == Armed && e == Transfer -> out = Transferring
	:: s == Armed && e == Commit -> out = Committed
	:: s == Armed && e == Abort -> out = Aborted
	:: s == Armed && e == Expire -> out = Aborted
	:: s == Armed && e == Restart -> out = Aborted
	:: s == Transferring && e == Transfer -> out = Transferring
	:: s == Transferring && e == Commit -> out = Committed
	:: s == Transferring && e == Abort -> out = Aborted
	:: s == Transferring && e == Expire -> out = Aborted
	:: s == Transferring && e == Restart -> out = Aborted
	:: s == Committed && e == Commit -> out = Committed
	:: s == Aborted && e == Abort -> out = Aborted
	:: s == Aborted && e == Expire -> out = Aborted
	:: s == Aborted && e == Restart -> out = Aborted
	/* transitions: end */
	:: else -> out = Refused
	fi
}

/* A node's sessions. S's session of attempt k is at k, D's at N+k. */
#define S(k) (k)
#define D(k) (N + (k))
#define BOTH 3 /* blob types are bits: 1 permanent, 2 volatile */

byte st[2 * N];      /* 0: there is none yet */
bool key[2 * N];     /* the keys of the transfer are there */
bool conv[2 * N];    /* the channel to the peer is there */
byte claimed[2 * N]; /* blob types that began to cross */
byte crossed[2 * N]; /* blob types that crossed whole */
byte sealed[N];      /* blobs of the attempt that S let out: anyone may have them */
byte mig[2 * N];     /* the migration id + 1, once armed */
bool used[2 * N];    /* each node's durable record of migration ids */

/* The VM, and libvirt's job. */
#define Idle 0
#define Running 1
#define Completed 2
#define Failed 3
bool vmS = true, vmD = false; /* runs there */
byte job = Idle;

/* The VM's escrowed secret, sealed on disk: it survives a crash. */
bool secS = true;   /* escrowed on S */
bool secD = false;  /* escrowed on D */
byte incoming = 0;  /* D: came with attempt incoming - 1, and waits for its commit; 0: none */
#define D_HAS_SECRET (secD || incoming != 0)

/* Requests from S to D and the answers. One request is under way at a time; what is in a channel may be lost at any time. */
#define SECRET 1
#define ARM 2
#define COMMIT 3
#define ABORT 4
chan req = [1] of { byte, byte };       /* attempt, kind */
chan ans = [1] of { byte, byte, bool }; /* attempt, kind, granted */
byte askedId[N];                        /* the migration id that the attempt's ARM carries */
byte kept[N];                           /* D: the kind that was answered last, */
bool keptAs[N];                         /*    and the answer */

bool crashS = true, crashD = true; /* one crash each is left */

/* Ghosts: history that no node has. */
byte acted[N];         /* kinds, as bits, that D acted on */
bool once[2 * N];      /* ids that a node ever armed */
byte opened[N];        /* blobs of the attempt that D opened */

/* The properties. Each is false until it is broken. */
bool two_live_copies, vm_lost, key_after_end, ended_session_changed, source_armed_alone, migration_id_reused, request_acted_on_twice,
	blob_opened_twice, foreign_blob_opened, blob_released_after_end, half_state_committed, one_sided_commit, secret_lost, secret_left_behind;

#ifdef WITNESSES
bool moved, moved_at_the_second_attempt, source_never_heard_of_the_commit, moved_in_doubt;
#endif

inline check(good, name) {
	if
	:: !(good) -> name = true; assert(!name)
	:: else
	fi
}

/* advance applies an event to a session; to is Refused if the machine refuses. Whoever ends a session loses its keys. */
inline advance(x, e) {
	next(st[x], e, to);
	if
	:: to == Refused
	:: else ->
		st[x] = to;
		if
		:: ENDED(to) -> end_session(x)
		:: else
		fi
	fi
}

inline end_session(x) {
#ifdef MUTANT_KEEP_KEY_AFTER_ABORT
	key[x] = key[x] && st[x] == Aborted;
#else
	key[x] = false;
#endif
#ifndef MUTANT_COMMIT_AFTER_ABORT
	conv[x] = false;
#endif
	/* A secret that came with a session goes with it, unless the whole state of the vTPM crossed: then D may have the VM already, and
	   keeps the secret until it is told otherwise (Forget). */
	if
#ifdef MUTANT_DISCARD_IN_DOUBT
	:: x >= N && st[x] == Aborted && incoming == x - N + 1 -> incoming = 0
#else
	:: x >= N && st[x] == Aborted && incoming == x - N + 1 && crossed[x] != BOTH -> incoming = 0
#endif
	:: else
	fi
}

/* Whole: nothing began to cross that has not crossed. */
#define ALL_OR_NOTHING(x) (crossed[x] == 0 || crossed[x] == BOTH)
#if defined(MUTANT_NO_WHOLE_CHECK)
#define WHOLE(x) true
#elif defined(MUTANT_BLOB_UNDER_WAY_OVERLOOKED)
#define WHOLE(x) ALL_OR_NOTHING(x)
#else
#define WHOLE(x) (claimed[x] == crossed[x] && ALL_OR_NOTHING(x))
#endif

/* live finds the live session of a node whose sessions begin at first; x is 255 if there is none. */
inline live(first) {
	if
	:: LIVE(st[first]) -> x = first
	:: !LIVE(st[first]) && LIVE(st[first + 1]) -> x = first + 1
	:: else -> x = 255
	fi
}

/* use records a migration id for good; fresh says that it was new. */
inline use(n) {
#ifdef MUTANT_ID_REUSE
	fresh = true;
#else
	fresh = !used[n];
#endif
	if
	:: fresh ->
		check(!once[n], migration_id_reused);
		used[n] = true;
		once[n] = true
	:: else
	fi
}

/* ---- D answers ------------------------------------------------------------------------------------------------------------------- */

inline answer(ak, akind, as) {
	kept[ak] = akind;
	keptAs[ak] = as;
	if
	:: len(ans) == 1 -> ans?_, _, _
	:: else
	fi;
	ans!ak, akind, as
}

/* act marks that D acts on a request now. */
inline act(ak, akind) {
	check((acted[ak] & (1 << akind)) == 0, request_acted_on_twice);
	acted[ak] = acted[ak] | (1 << akind)
}

#ifdef MUTANT_NO_KEPT_ANSWER
#define KEPT(k, kind) false
#else
#define KEPT(k, kind) (kept[k] == kind)
#endif

active proctype Destination() {
	byte k, kind, to;
	bool fresh;
end:
	do
	:: atomic {
		req?k, kind ->
		if
		:: KEPT(k, kind) -> answer(k, kind, keptAs[k])
		:: !KEPT(k, kind) && !conv[D(k)] -> skip /* no session, or its channel is gone: nothing that S would believe is said */
		:: !KEPT(k, kind) && conv[D(k)] && kind == SECRET ->
			act(k, SECRET);
			if
			:: st[D(k)] == Appraised || LIVE(st[D(k)]) ->
				incoming = k + 1;
				answer(k, kind, true)
			:: else -> answer(k, kind, false); advance(D(k), Abort)
			fi
		:: !KEPT(k, kind) && conv[D(k)] && kind == ARM ->
			act(k, ARM);
			to = Refused;
			if
			:: st[D(k)] == Appraised && !LIVE(st[D(1 - k)]) ->
				use(D(askedId[k]));
				if
				:: fresh -> mig[D(k)] = askedId[k] + 1; advance(D(k), Arm)
				:: else
				fi
			:: else
			fi;
			if
			:: to == Armed -> answer(k, kind, true)
			:: else -> answer(k, kind, false); advance(D(k), Abort)
			fi
		:: !KEPT(k, kind) && conv[D(k)] && kind == ABORT ->
			act(k, ABORT);
			answer(k, kind, true);
			advance(D(k), Abort)
		:: !KEPT(k, kind) && conv[D(k)] && kind == COMMIT -> goto commit
		fi
	   }
	od;
commit:
	/* The secret becomes D's own, durably, before the commit is said to be done. */
	atomic {
#ifdef MUTANT_COMMIT_AFTER_ABORT
		if
		:: conv[D(k)] && st[D(k)] == Aborted ->
			st[D(k)] = Committed; ended_session_changed = true; assert(!ended_session_changed)
		:: else
		fi;
#endif
		if
		:: LIVE(st[D(k)]) && WHOLE(D(k)) && incoming == k + 1 -> secD = true; incoming = 0
		:: else
		fi
	}
	atomic {
		if
		:: conv[D(k)] ->
			act(k, COMMIT);
			to = Refused;
			if
			:: LIVE(st[D(k)]) && WHOLE(D(k)) ->
				check(ALL_OR_NOTHING(D(k)), half_state_committed);
				advance(D(k), Commit)
			:: else
			fi;
			if
			:: to == Committed -> answer(k, kind, true)
			:: else -> answer(k, kind, false); advance(D(k), Abort)
			fi
		:: else /* it ended meanwhile */
		fi;
		goto end
	}
}

/* ---- Nova on the source, and what S does for it -------------------------------------------------------------------------------------- */

#define Lost 0
#define Yes 1
#define No 2

/* rpc tries once to have a request answered. S cannot tell a lost request from a lost answer. */
inline rpc(kind) {
	got = Lost;
	if
	:: atomic {
		conv[S(k)] ->
		if
		:: len(req) == 1 -> req?_, _
		:: else
		fi;
		req!k, kind
	   };
	   do
	   :: atomic {
		ans?ak, akind, aok ->
		if
		:: ak == k && akind == kind ->
			if
			:: conv[S(k)] && aok -> got = Yes
			:: conv[S(k)] && !aok -> got = No
			:: else
			fi;
			break
		:: else /* an answer that came too late */
		fi
	      }
	   :: break /* the deadline has passed */
	   od
	:: !conv[S(k)]
	fi
}

/* ask sends what has no answer yet first, as the same bytes. */
inline ask(kind) {
	if
	:: pending != 0 && pending != kind ->
		rpc(pending);
		if
		:: got != Lost -> pending = 0
		:: else
		fi
	:: else
	fi;
	if
	:: pending == 0 || pending == kind ->
		pending = kind;
		rpc(kind);
		if
		:: got != Lost -> pending = 0
		:: else
		fi
	:: else
	fi
}

/* give_up aborts on S and tells D, as far as it can be told. */
inline give_up() {
	key[S(k)] = false;
	if
	:: OPEN(st[S(k)]) -> ask(ABORT)
	:: else
	fi;
	atomic { if :: OPEN(st[S(k)]) -> advance(S(k), Abort) :: else fi }
}

/* establish: phases 1 and 2. Each side moves on by itself; the stream may break between any two steps. to is Refused if it failed on S. */
inline establish() {
	atomic { st[S(k)] = Offered; to = Offered };
	if
	:: st[D(k)] = Offered; /* S dials; were it D, this and the line before would be swapped */
		atomic { advance(S(k), Attest) };
		if
		:: to != Refused ->
			atomic { advance(D(k), Attest) };
			if
			:: to != Refused ->
				if /* M4 has been sent: whichever is quicker */
				:: true -> appraise_S(); appraise_D()
				:: true -> appraise_D(); appraise_S()
				:: true -> appraise_S()
				:: true -> appraise_D()
				fi
			:: else
			fi
		:: else
		fi
	:: skip
	fi
}

inline appraise_S() {
	atomic {
		advance(S(k), Appraise);
		if
		:: to == Appraised -> key[S(k)] = true; conv[S(k)] = true
		:: else
		fi
	}
}

/* On D a newly appraised session of the same source takes the place of an older one, armed or not. */
inline appraise_D() {
	atomic {
		advance(D(k), Appraise);
		if
		:: to == Appraised ->
			key[D(k)] = true; conv[D(k)] = true;
			if
			:: OPEN(st[D(1 - k)]) && st[D(1 - k)] >= Appraised -> advance(D(1 - k), Abort)
			:: else
			fi
		:: else
		fi
	}
}

/* arm binds both nodes to an id, D first. */
inline arm() {
	select(id : 0 .. N - 1);
	askedId[k] = id;
#ifdef MUTANT_ARM_SOURCE_FIRST
	arm_here();
	ask(ARM)
#else
	ask(ARM);
	if
	:: got == Yes -> arm_here()
	:: else
	fi
#endif
}

inline arm_here() {
	atomic {
		to = Refused;
		if
		:: st[S(k)] == Appraised && !LIVE(st[S(1 - k)]) ->
			use(S(id));
			if
			:: fresh ->
				check(mig[D(k)] == id + 1, source_armed_alone);
				mig[S(k)] = id + 1;
				advance(S(k), Arm)
			:: else
			fi
		:: else
		fi;
		if
		:: to == Refused -> got = No
		:: else
		fi
	}
}

#ifdef MUTANT_RETRY_RENEWS_LEASE
bool asking;
#define LEASE (!asking)
#else
#define LEASE true
#endif

/* commit: S destroys the keys of the transfer, D commits, then S. */
inline commit_migration() {
	if
	/* The check and the end of the keys are one step: no blob begins to cross between them. */
#ifdef MUTANT_CHECK_THEN_DESTROY
	:: LIVE(st[S(k)]) && WHOLE(S(k)) -> key[S(k)] = false;
#else
	:: atomic { LIVE(st[S(k)]) && WHOLE(S(k)) -> key[S(k)] = false };
#endif
#ifdef MUTANT_SOURCE_COMMITS_FIRST
		atomic { advance(S(k), Commit) };
#endif
#ifdef MUTANT_RETRY_RENEWS_LEASE
		asking = true;
#endif
		do
		:: true ->
			ask(COMMIT);
			if
			:: got == Yes ->
				atomic {
					advance(S(k), Commit); /* refused, if the session ended meanwhile: then S keeps its secret */
					if
					:: to == Committed -> check(ALL_OR_NOTHING(S(k)), half_state_committed)
					:: else
					fi
				};
				if
				:: st[S(k)] == Committed -> secS = false
				:: else
				fi;
				break
			:: got == No -> break
			:: got == Lost && conv[S(k)] -> skip /* tries again */
			:: got == Lost -> break              /* gives up: the session's time will be up */
			fi
		od
	:: !(LIVE(st[S(k)]) && WHOLE(S(k)))
	fi
}

active proctype Nova() {
	byte k, id, got, pending, to, ak, akind;
	bool aok, fresh;
	do
	:: k == ATTEMPTS || !vmS -> break /* no attempt is left, or the VM has moved */
	:: k < ATTEMPTS && vmS && !LIVE(st[S(1 - k)]) ->
		pending = 0;
		establish();
		if
		:: st[S(k)] == Appraised && secS -> ask(SECRET)
		:: else -> got = No
		fi;
#ifdef MUTANT_FORGET_SECRET_EARLY
		if :: got == Yes -> secS = false :: else fi;
#endif
		if
		:: got == Yes -> arm()
		:: else
		fi;
		if
		:: got == Yes ->
			job = Running;
			if
			:: job != Running
			:: give_up() /* Nova aborts in the middle */
#ifdef HASTY_NOVA
			:: commit_migration() /* Nova, in error, commits what has not ended */
#endif
			fi;
			job != Running;
			if
			:: job == Completed -> commit_migration()
			:: job == Failed -> give_up()
			fi;
			job = Idle
		:: else -> give_up()
		fi;
		k++
	:: k < ATTEMPTS && vmS && LIVE(st[S(1 - k)]) -> !LIVE(st[S(1 - k)]) /* S begins no session beside a live one */
	od;
	/* Every session ends, whatever was lost. */
	!OPEN(st[0]) && !OPEN(st[1]) && !OPEN(st[2]) && !OPEN(st[3])
}

/* ---- QEMU and libvirt -------------------------------------------------------------------------------------------------------------- */

/* begin_blob claims a blob type under a node's live session, if there is one: a type is claimed once in its life. */
inline begin_blob(first, t) {
	atomic {
		live(first);
		if
		:: x == 255
#ifdef MUTANT_BLOB_TWICE
		:: x != 255 && key[x] -> advance(x, Transfer); claimed[x] = claimed[x] | t
#else
		:: x != 255 && (claimed[x] & t) != 0 -> x = 255
		:: x != 255 && (claimed[x] & t) == 0 && key[x] -> advance(x, Transfer); claimed[x] = claimed[x] | t
#endif
		:: x != 255 && !key[x] -> advance(x, Abort); x = 255
		fi
	}
}

#ifdef MUTANT_RELEASE_AFTER_ABORT
#define MAY_RELEASE(x) true
#else
#define MAY_RELEASE(x) (!ENDED(st[x]))
#endif

/* seal takes one blob out of S. */
inline seal(t) {
	begin_blob(S(0), t);
	if
	:: x == 255 -> good = false
	:: else ->
		atomic {
			if
			:: MAY_RELEASE(x) ->
				check(!ENDED(st[x]), blob_released_after_end);
				crossed[x] = crossed[x] | t;
				sealed[x] = sealed[x] | t;
				under = x;
				good = true
			:: else -> good = false
			fi
		}
	fi
}

/* end_open hands a blob of attempt from out to D's host, if it is authentic under session x and the session lasts. */
inline end_open(from, t) {
	if
#ifndef MUTANT_ONE_KEY
	:: x != D(from) -> /* not authentic: the session ends */
		if
		:: OPEN(st[x]) -> advance(x, Abort)
		:: else
		fi;
		good = false
#else
	:: x != D(from) && !ENDED(st[x]) -> check(x == D(from), foreign_blob_opened)
#endif
	:: x == D(from) && MAY_RELEASE(x) ->
		check(!ENDED(st[x]), blob_released_after_end);
		check((opened[from] & t) == 0, blob_opened_twice);
		opened[from] = opened[from] | t;
		crossed[x] = crossed[x] | t;
		good = true
	:: else -> good = false
	fi
}

inline open(from, t) {
	begin_blob(D(0), t);
	if
	:: x == 255 -> good = false
	:: else -> atomic { end_open(from, t) }
	fi
}

active proctype Qemu() {
	byte x, under, to;
	bool good;
end:
	do
	:: job == Running ->
		if
		:: job = Failed; goto end /* cancelled, or the stream broke, before the VM was stopped */
		:: vmS = false            /* switch-over: the VM is stopped */
		fi;
		seal(1);
		if :: good -> seal(2) :: else fi;
		if
		:: !good -> atomic { vmS = true; job = Failed; goto end } /* pre-save failed */
		:: good
		fi;
		if
		:: atomic { vmS = true; job = Failed; goto end } /* the stream broke */
		:: true -> open(under, 1)
		fi;
		if :: good -> open(under, 2) :: else fi;
		if
		:: good -> /* D has loaded the state and waits; it runs only when S knows. What libvirt decides here, it decides once. */
#ifdef MUTANT_DESTINATION_DOES_NOT_WAIT
			vmD = true;
#endif
			if
			:: atomic { vmD = true; job = Completed }
			:: atomic { vmS = true; job = Failed }
			fi
		:: !good ->
#ifdef MUTANT_NO_RETURN_PATH
			job = Completed /* S never hears that D could not load the state */
#else
			atomic { vmS = true; job = Failed }
#endif
		fi
	od
}

/* ---- What else may happen ------------------------------------------------------------------------------------------------------------ */

inline crash(first) {
	x = first;
	do
	:: x < first + N ->
		if
		:: OPEN(st[x]) -> st[x] = Aborted; key[x] = false
		:: else
		fi;
		conv[x] = false;
		x++
	:: else -> break
	od
}

active proctype Faults() {
	byte x, to, from, t;
	bool good;
end:
	do
	/* The network loses. */
	:: req?_, _
	:: ans?_, _, _
	/* A node service crashes and starts again. What it held in memory is gone. */
	:: atomic { crashS -> crashS = false; crash(S(0));
#ifdef MUTANT_LEDGER_IN_MEMORY
		used[S(0)] = false; used[S(1)] = false;
#endif
		x = 0 }
	:: atomic { crashD -> crashD = false; crash(D(0)); kept[0] = 0; kept[1] = 0;
#ifdef MUTANT_LEDGER_IN_MEMORY
		used[D(0)] = false; used[D(1)] = false;
#endif
#ifdef MUTANT_INCOMING_DROPPED_AT_START
		incoming = 0;
#endif
#ifdef MUTANT_PROMOTION_NOT_DURABLE
		secD = false;
#endif
		x = 0 }
	/* Whoever recorded a blob offers it to D. */
	:: atomic {
		if
		:: (sealed[0] & 1) != 0 -> from = 0; t = 1
		:: (sealed[0] & 2) != 0 -> from = 0; t = 2
		:: (sealed[1] & 1) != 0 -> from = 1; t = 1
		:: (sealed[1] & 2) != 0 -> from = 1; t = 2
		fi;
		open(from, t);
		x = 0; good = false; to = 0; from = 0; t = 0
	   }
	od
}

/* A session's time is up; or its peer's verdict no longer holds; or somebody forged a message to D that did not open. All of it may be at any
   moment, and in the end the time is up. */
active proctype Time() {
	byte x, to;
end:
	do
#ifndef MUTANT_NO_EXPIRY
	:: atomic {
		if
		:: OPEN(st[S(0)]) && LEASE -> x = S(0)
		:: OPEN(st[S(1)]) && LEASE -> x = S(1)
		:: OPEN(st[D(0)]) -> x = D(0)
		:: OPEN(st[D(1)]) -> x = D(1)
		fi;
		advance(x, Expire);
		x = 0; to = 0
	   }
#else
	:: false
#endif
	od
}

/* The invariants, watched at every step. */
#define KEY_LEFT(x) (key[x] && ENDED(st[x]))

active proctype Monitor() {
end:
	do
	:: atomic { vmS && vmD -> two_live_copies = true; assert(!two_live_copies) }
	:: atomic { job != Running && !vmS && !vmD -> vm_lost = true; assert(!vm_lost) }
	:: atomic { KEY_LEFT(0) || KEY_LEFT(1) || KEY_LEFT(2) || KEY_LEFT(3) -> key_after_end = true; assert(!key_after_end) }
	:: atomic {
		(st[S(0)] == Committed && st[D(0)] != Committed) || (st[S(1)] == Committed && st[D(1)] != Committed) ->
		one_sided_commit = true; assert(!one_sided_commit)
	   }
	:: atomic { !secS && !D_HAS_SECRET -> secret_lost = true; assert(!secret_lost) }
#ifndef HASTY_NOVA
	:: atomic { (vmS && !secS) || (vmD && !D_HAS_SECRET) -> secret_left_behind = true; assert(!secret_left_behind) }
#endif
#ifdef WITNESSES
	/* Not properties but things that must be possible, or the properties would say nothing. */
	:: atomic {
		WITNESSES == 1 && st[S(0)] == Committed && st[D(0)] == Committed && vmD && !secS && secD ->
		moved = true; assert(!moved)
	   }
	:: atomic {
		WITNESSES == 2 && st[S(0)] == Aborted && opened[0] == BOTH && st[S(1)] == Committed && vmD ->
		moved_at_the_second_attempt = true; assert(!moved_at_the_second_attempt)
	   }
	:: atomic {
		WITNESSES == 3 && st[S(0)] == Aborted && st[D(0)] == Committed && vmD && secS && secD ->
		source_never_heard_of_the_commit = true; assert(!source_never_heard_of_the_commit)
	   }
	:: atomic {
		WITNESSES == 4 && st[D(0)] == Aborted && vmD && incoming == 1 && job == Idle ->
		moved_in_doubt = true; assert(!moved_in_doubt)
	   }
#endif
	od
}

#define OVER (!OPEN(st[0]) && !OPEN(st[1]) && !OPEN(st[2]) && !OPEN(st[3]))
ltl every_session_ends { <> [] OVER }
