-- What a batch of ledger commands does to PostgreSQL: billing/ledger.py, word for word, under the accounts' locks.
--
-- One call is one transaction and one round trip. The first statement takes the locks, in the order of the ids, as every
-- writer does, so that there are no deadlocks; every later statement sees what was committed before it got them. The
-- commands are then folded one after the other over arrays, an element an account, and written by one statement a table.
-- Put in place by `farebox migrate`, anew with every schema.

DROP FUNCTION IF EXISTS apply_batch(json, bigint[], text[], bigint[], bigint[], bigint[], bigint, bigint);
DROP TYPE IF EXISTS ledger_command;

CREATE TYPE ledger_command AS (
  type text, request_id text, account_id bigint, key_id bigint, model text, amount_nanos bigint, least_nanos bigint,
  tokens bigint, price_version bigint, kind text, outcome text, status bigint, cost_nanos bigint, list_nanos bigint,
  waive boolean, input_tokens bigint, cache_write_5m_tokens bigint, cache_write_1h_tokens bigint,
  cache_read_tokens bigint, output_tokens bigint, web_searches bigint, limited_tokens bigint, detail text,
  stop_reason text, message_id text, upstream text, upstream_request_id text, attempts bigint, streamed boolean,
  first_byte_us bigint, duration_us bigint, session text, agent text, parent_agent text, held_nanos bigint, tries text,
  standing boolean, id text, debit_account text, credit_account text, code text, actor text, memo text
);

-- billing/ratelimit.py: spend
CREATE OR REPLACE FUNCTION bucket_spend(full_ns bigint, amount bigint, per_minute bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT full_ns + div(amount::numeric * 60000000000 + CASE WHEN amount > 0 THEN per_minute - 1 ELSE 0 END,
                       per_minute::numeric)::bigint
$$;

-- billing/ratelimit.py: settle_state
CREATE OR REPLACE FUNCTION bucket_state(full_ns bigint, now_ns bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT greatest(now_ns, least(full_ns, now_ns + 660000000000)) $$;

-- billing/budgets.py: period_start_us. The first day of 1970 was a Thursday.
CREATE OR REPLACE FUNCTION period_start_us(resets text, at bigint) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT CASE resets
    WHEN 'daily' THEN at - at % 86400000000
    WHEN 'weekly' THEN at - (at + 259200000000) % 604800000000
    WHEN 'monthly' THEN extract(epoch FROM date_trunc('month', to_timestamp(at / 1000000) AT TIME ZONE 'UTC'))::bigint * 1000000
    ELSE 0 END
$$;

-- The present moment in microseconds UTC: the one clock that all processes share.
CREATE OR REPLACE FUNCTION now_us() RETURNS bigint
LANGUAGE sql VOLATILE AS $$ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint $$;

-- When the oldest transaction began that has written something nobody sees yet: NULL where there is none. A commit may
-- wait for hours, for a standby. Of roles that are not ours nothing is known; they write no entries.
CREATE OR REPLACE FUNCTION unseen_since_us() RETURNS bigint
LANGUAGE sql VOLATILE AS $$
  SELECT (extract(epoch FROM min(xact_start)) * 1000000)::bigint FROM pg_stat_activity
   WHERE datname = current_database() AND backend_xid IS NOT NULL AND pid <> pg_backend_pid()
$$;

-- _batch: the commands in the order of billing/ledger.py ORDER, no id twice. _accounts: whom they are about.
-- _plan_*: the plans, the default one first. _given_now_us: NULL, or the moment to take for the present one.
-- An answer a command, by its place in the batch; a to j are what its verdict needs (see postgres_answers.py).
CREATE FUNCTION apply_batch(
  _batch json, _accounts bigint[], _plan_names text[], _plan_requests bigint[], _plan_tokens bigint[],
  _plan_concurrent bigint[], _run_id bigint, _given_now_us bigint,
  OUT ord bigint, OUT verdict text, OUT a bigint, OUT b bigint, OUT c bigint, OUT d bigint, OUT e bigint, OUT f bigint,
  OUT g bigint, OUT h bigint, OUT i bigint, OUT j text
) RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
  blank ledger_command;  -- what a settle leaves out
  commands ledger_command[];
  request_ids bytea[];
  ids bigint[]; statuses text[]; requests_pms bigint[]; tokens_pms bigint[]; concurrents bigint[];
  posted bigint[]; held bigint[]; holds bigint[]; topped_up bigint[]; requests_full bigint[]; tokens_full bigint[];
  touched boolean[];
  held_now bigint[]; charged bigint[]; short bigint[]; kinds text[];
  dates bigint[];  -- of holds and entries whose key has a budget: none is older than the budget's period
  budget_keys bigint[] := '{}'; budget_since bigint[] := '{}'; budget_used bigint[] := '{}';
  pace_keys bigint[] := '{}'; pace_full bigint[] := '{}';
  settled bytea[] := '{}';
  resized bytea[] := '{}'; resized_amount bigint[] := '{}'; resized_tokens bigint[] := '{}'; resized_expired bigint[] := '{}';
  new_run bigint[] := '{}'; new_created bigint[] := '{}';
  moment_us bigint; moment_ns bigint; entry_us bigint;
  r record; n int; s int; s2 int; bs int; ps int; free bigint; rq bigint; tk bigint; kq bigint; wait bigint;
  amount bigint; most bigint; moved_to bigint; rows int; since bigint; used bigint; left_nanos bigint; counted boolean;
  requests_pm bigint; tokens_pm bigint; wanted int := 0;
BEGIN
  SELECT array_agg(x.id), array_agg(x.status), array_agg(coalesce(x.requests_per_minute, _plan_requests[x.place])),
         array_agg(coalesce(x.tokens_per_minute, _plan_tokens[x.place])),
         array_agg(coalesce(x.concurrent, _plan_concurrent[x.place])),
         array_agg(x.posted_nanos), array_agg(x.held_nanos), array_agg(x.open_holds), array_agg(x.topped_up_nanos),
         array_agg(x.requests_full_ns), array_agg(x.tokens_full_ns), array_agg(false)
    INTO ids, statuses, requests_pms, tokens_pms, concurrents, posted, held, holds, topped_up, requests_full, tokens_full,
         touched
    FROM (SELECT account.*, coalesce(array_position(_plan_names, account.plan), 1) AS place
            FROM account WHERE account.id = ANY (_accounts) ORDER BY account.id FOR NO KEY UPDATE) x;

  moment_us := coalesce(_given_now_us, now_us());
  moment_ns := moment_us * 1000;
  -- no entry is older than the last closed day and hour, so that none slips into a digest or a sum already taken
  SELECT greatest(moment_us, coalesce((SELECT extract(epoch FROM max(day)::date + 1)::bigint * 1000000 FROM day_close), 0),
                  coalesce((SELECT (max(hour) + 1) * 3600000000 FROM hour_close), 0)) INTO entry_us;

  blank.cost_nanos := 0; blank.list_nanos := 0; blank.waive := false; blank.input_tokens := 0;
  blank.cache_write_5m_tokens := 0; blank.cache_write_1h_tokens := 0; blank.cache_read_tokens := 0;
  blank.output_tokens := 0; blank.web_searches := 0; blank.limited_tokens := 0; blank.attempts := 0;
  blank.streamed := false; blank.duration_us := 0; blank.standing := false;
  SELECT array_agg(x), array_agg(decode(x.request_id, 'base64')) INTO commands, request_ids
    FROM json_populate_recordset(blank, _batch) x;
  n := cardinality(commands);
  held_now := array_fill(NULL::bigint, ARRAY[n]);
  charged := held_now; short := held_now; dates := held_now; kinds := array_fill(NULL::text, ARRAY[n]);

  FOR r IN
    SELECT q.*, array_position(ids, q.account_id) AS slot,
           ho.account_id IS NOT NULL AS is_taken, (ho.account_id = q.account_id) IS TRUE AS is_held,
           ho.amount_nanos AS hold_amount, ho.tokens AS hold_tokens, ho.created_at AS hold_created,
           ho.expired_at IS NOT NULL AS has_expired, (ho.run_id = -1) IS TRUE AS stands,
           u.request_id IS NOT NULL AS is_settled, u.charged_nanos AS was_charged, u.shortfall_nanos AS was_short,
           u.kind AS was_kind,
           k.account_id = q.account_id AND k.revoked_at IS NULL AND k.disabled_at IS NULL
             AND (k.expires_at IS NULL OR moment_us < k.expires_at) AS key_counts,
           k.requests_per_minute AS key_pm,
           y.key_id AS budget_key, y.limit_nanos, y.resets, y.since, y.used_nanos
      FROM unnest(request_ids, commands) WITH ORDINALITY AS q (rid)
      LEFT JOIN hold ho ON ho.request_id = q.rid
      LEFT JOIN usage u ON u.request_id = q.rid
      LEFT JOIN api_key k ON k.id = q.key_id
      LEFT JOIN key_budget y ON y.key_id = coalesce(ho.key_id, q.key_id)
     ORDER BY q.ordinality
  LOOP
    ord := r.ordinality; verdict := NULL; s := r.slot;
    a := NULL; b := NULL; c := NULL; d := NULL; e := NULL; f := NULL; g := NULL; h := NULL; i := NULL; j := NULL;
    bs := NULL;
    IF r.budget_key IS NOT NULL THEN
      bs := array_position(budget_keys, r.budget_key);
      IF bs IS NULL THEN
        budget_keys := budget_keys || r.budget_key; bs := cardinality(budget_keys);
        budget_since[bs] := r.since; budget_used[bs] := r.used_nanos;
      END IF;
      since := period_start_us(r.resets, entry_us); used := 0;  -- of the present period, which may begin here
      IF since <= budget_since[bs] THEN
        since := budget_since[bs]; used := budget_used[bs];
      END IF;
      left_nanos := r.limit_nanos - used; counted := r.hold_created >= since;
    END IF;
    IF r.type = 'settle' THEN
      IF s IS NULL OR NOT r.is_held THEN
        verdict := CASE WHEN NOT r.is_settled THEN 'unknown' WHEN r.was_kind = 'recovered' THEN 'recovered' ELSE 'settled_before' END;
        a := r.was_charged; b := r.was_short;
      ELSE
        held[s] := held[s] - r.hold_amount;
        IF NOT r.has_expired AND NOT r.stands THEN holds[s] := holds[s] - 1; END IF;
        amount := CASE WHEN r.waive THEN 0 ELSE least(r.cost_nanos, posted[s] - held[s]) END;
        posted[s] := posted[s] - amount;
        IF bs IS NOT NULL THEN
          IF counted THEN used := greatest(0, used - r.hold_amount); END IF;
          budget_since[bs] := since; budget_used[bs] := used + amount; dates[ord] := greatest(entry_us, since);
        END IF;
        IF r.limited_tokens <> r.hold_tokens THEN
          tokens_full[s] := bucket_spend(bucket_state(tokens_full[s], moment_ns), r.limited_tokens - r.hold_tokens, tokens_pms[s]);
        END IF;
        verdict := 'settled'; a := amount; b := CASE WHEN r.waive THEN 0 ELSE r.cost_nanos - amount END;
        touched[s] := true; charged[ord] := a; short[ord] := b; settled := settled || r.rid;
        kinds[ord] := CASE WHEN r.has_expired AND r.kind IN ('exact', 'estimated') THEN 'late' ELSE r.kind END;
      END IF;

    ELSIF r.type = 'expire' THEN
      IF s IS NULL OR NOT r.is_held OR r.has_expired THEN
        verdict := 'not_held';
      ELSE
        held[s] := held[s] - r.hold_amount; touched[s] := true;
        IF NOT r.stands THEN holds[s] := holds[s] - 1; END IF;
        verdict := 'expired'; a := r.hold_amount;
        IF bs IS NOT NULL THEN
          IF counted THEN used := greatest(0, used - r.hold_amount); END IF;
          budget_since[bs] := since; budget_used[bs] := used;
        END IF;
        resized := resized || r.rid; resized_amount := resized_amount || 0::bigint;
        resized_tokens := resized_tokens || r.hold_tokens; resized_expired := resized_expired || moment_us;
        new_run := new_run || NULL::bigint; new_created := new_created || NULL::bigint;
      END IF;

    ELSIF r.type = 'resize' THEN
      IF s IS NULL OR NOT r.is_held THEN
        verdict := 'gone';
      ELSE
        IF r.has_expired AND NOT r.stands THEN holds[s] := holds[s] + 1; END IF;
        held[s] := held[s] - r.hold_amount;  -- first, so that no sum leaves 64 bits
        amount := least(r.amount_nanos, posted[s] - held[s]); moved_to := NULL;
        IF bs IS NOT NULL THEN
          most := CASE WHEN counted THEN r.hold_amount + greatest(0, left_nanos) ELSE greatest(r.hold_amount, left_nanos) END;
          IF most < amount THEN
            amount := most; b := r.limit_nanos; c := left_nanos; j := r.resets;
          END IF;
          IF counted THEN
            used := greatest(0, used - r.hold_amount + amount);
          ELSIF amount > r.hold_amount THEN  -- one that grows belongs to the present period
            used := used + amount; moved_to := since;
          END IF;
          budget_since[bs] := since; budget_used[bs] := used;
        END IF;
        held[s] := held[s] + amount;
        IF r.tokens <> r.hold_tokens THEN
          tokens_full[s] := bucket_spend(bucket_state(tokens_full[s], moment_ns), r.tokens - r.hold_tokens, tokens_pms[s]);
        END IF;
        verdict := 'resized'; a := amount; touched[s] := true;
        resized := resized || r.rid; resized_amount := resized_amount || amount;
        resized_tokens := resized_tokens || r.tokens; resized_expired := resized_expired || NULL::bigint;
        new_run := new_run || CASE WHEN r.stands THEN -1 ELSE _run_id END; new_created := new_created || moved_to;
      END IF;

    ELSIF r.type = 'admit' THEN
      IF s IS NULL OR r.key_counts IS NOT TRUE THEN
        verdict := 'key_invalid';
      ELSE
        requests_pm := requests_pms[s]; tokens_pm := tokens_pms[s]; ps := NULL;
        IF r.key_pm IS NOT NULL THEN
          ps := array_position(pace_keys, r.key_id); kq := pace_full[ps];
          IF ps IS NULL THEN
            SELECT key_pace.requests_full_ns INTO kq FROM key_pace WHERE key_pace.key_id = r.key_id;
          END IF;
          kq := bucket_state(coalesce(kq, 0), moment_ns);
        END IF;
        rq := bucket_state(requests_full[s], moment_ns); tk := bucket_state(tokens_full[s], moment_ns);
        free := posted[s] - held[s]; wait := 0; amount := 0;
        IF r.is_taken OR r.is_settled THEN
          verdict := 'duplicate'; amount := CASE WHEN r.is_held THEN r.hold_amount END;
        ELSIF statuses[s] <> 'active' THEN
          verdict := 'suspended';
        ELSE
          IF NOT r.standing THEN
            wait := greatest(0, bucket_spend(rq, least(1, requests_pm), requests_pm) - moment_ns - 60000000000);
            IF wait > 0 THEN
              verdict := 'requests_limited';
            ELSIF r.key_pm IS NOT NULL THEN
              wait := greatest(0, bucket_spend(kq, least(1, r.key_pm), r.key_pm) - moment_ns - 60000000000);
              IF wait > 0 THEN verdict := 'key_requests_limited'; END IF;
            END IF;
            IF verdict IS NULL THEN
              wait := greatest(0, bucket_spend(tk, least(r.tokens, tokens_pm), tokens_pm) - moment_ns - 60000000000);
              IF wait > 0 THEN
                verdict := 'tokens_limited';
              ELSIF holds[s] >= concurrents[s] THEN
                verdict := 'too_many_at_once';
              END IF;
            END IF;
          END IF;
          IF verdict IS NULL THEN
            IF r.least_nanos > free OR free <= 0 THEN
              verdict := 'insufficient';
            ELSIF bs IS NOT NULL AND (r.least_nanos > left_nanos OR left_nanos <= 0) THEN
              verdict := 'key_limited';
            ELSE
              verdict := 'admitted'; amount := least(r.amount_nanos, free);
              IF NOT r.standing THEN
                rq := bucket_spend(rq, 1, requests_pm); tk := bucket_spend(tk, r.tokens, tokens_pm);
                requests_full[s] := rq; tokens_full[s] := tk; holds[s] := holds[s] + 1;
              END IF;
              IF r.key_pm IS NOT NULL AND NOT r.standing THEN
                IF ps IS NULL THEN
                  pace_keys := pace_keys || r.key_id; ps := cardinality(pace_keys);
                END IF;
                pace_full[ps] := bucket_spend(kq, 1, r.key_pm);
              END IF;
              IF bs IS NOT NULL THEN
                amount := least(amount, left_nanos);
                budget_since[bs] := since; budget_used[bs] := used + amount; dates[ord] := greatest(moment_us, since);
              END IF;
              held[s] := held[s] + amount;
              touched[s] := true; held_now[ord] := amount; wanted := wanted + 1;
            END IF;
          END IF;
        END IF;
        a := amount; b := free; c := wait; d := rq; e := tk;
        f := requests_pm; g := tokens_pm; h := concurrents[s]; i := moment_ns;
        IF bs IS NOT NULL AND verdict IN ('admitted', 'key_limited') THEN
          c := left_nanos; j := r.resets || ' ' || r.limit_nanos;
        END IF;
      END IF;

    ELSE  -- transfer
      SELECT CASE WHEN (t.debit_account, t.credit_account, t.amount_nanos, t.code)
                     = (r.debit_account, r.credit_account, r.amount_nanos, r.code)
                  THEN 'posted_before' ELSE 'other_transfer' END
        INTO verdict FROM transfer t WHERE t.id = r.id;
      IF verdict IS NULL THEN
        s := NULL; s2 := NULL;
        IF r.debit_account LIKE 'customer:%' THEN
          a := substr(r.debit_account, 10)::bigint; s := array_position(ids, a); free := posted[s] - held[s];
          verdict := CASE WHEN s IS NULL THEN 'no_account' WHEN r.amount_nanos > free THEN 'refused' END;
        END IF;
        IF verdict IS NULL AND r.credit_account LIKE 'customer:%' THEN
          a := substr(r.credit_account, 10)::bigint; s2 := array_position(ids, a);
          verdict := CASE WHEN s2 IS NULL THEN 'no_account' WHEN r.amount_nanos > 9223372036854775807 - posted[s2] THEN 'too_much' END;
        END IF;
        b := free;
        IF verdict IS NULL THEN
          IF s IS NOT NULL THEN
            posted[s] := posted[s] - r.amount_nanos; touched[s] := true;
            IF r.code = 'deposit' THEN topped_up[s] := topped_up[s] - r.amount_nanos; END IF;
          END IF;
          IF s2 IS NOT NULL THEN
            posted[s2] := posted[s2] + r.amount_nanos; touched[s2] := true;
            IF r.code = 'deposit' THEN topped_up[s2] := topped_up[s2] + r.amount_nanos; END IF;
          END IF;
          INSERT INTO transfer (id, at, debit_account, credit_account, amount_nanos, code, actor, memo)
          VALUES (r.id, entry_us, r.debit_account, r.credit_account, r.amount_nanos, r.code, r.actor, r.memo);
          verdict := 'posted';
        END IF;
      END IF;
    END IF;
    RETURN NEXT;
  END LOOP;

  IF cardinality(settled) > 0 THEN  -- the only gate (promise 5): the hold goes as its usage row comes
    INSERT INTO usage (
      request_id, at, account_id, key_id, kind, model, asked_model, price_version, input_tokens, cache_write_5m_tokens,
      cache_write_1h_tokens, cache_read_tokens, output_tokens, web_searches, detail, cost_nanos, list_nanos,
      charged_nanos, shortfall_nanos, waived_nanos, status, outcome, stop_reason, message_id, upstream,
      upstream_request_id, attempts, streamed, first_byte_us, duration_us, session, agent, parent_agent, held_nanos,
      tries)
    SELECT ho.request_id, coalesce(q.dated, entry_us), ho.account_id, ho.key_id, q.ended, q.model, ho.model,
           ho.price_version, q.input_tokens,
           q.cache_write_5m_tokens, q.cache_write_1h_tokens, q.cache_read_tokens, q.output_tokens, q.web_searches,
           q.detail, q.cost_nanos, q.list_nanos, q.charged, q.short, CASE WHEN q.waive THEN q.cost_nanos ELSE 0 END,
           q.status, q.outcome, q.stop_reason, q.message_id, q.upstream, q.upstream_request_id, q.attempts,
           q.streamed::int, q.first_byte_us, q.duration_us, q.session, q.agent, q.parent_agent, q.held_nanos, q.tries
      FROM unnest(request_ids, charged, short, kinds, dates, commands) AS q (rid, charged, short, ended, dated)
      JOIN hold ho ON ho.request_id = q.rid
     WHERE q.charged IS NOT NULL;
    GET DIAGNOSTICS rows = ROW_COUNT;
    DELETE FROM hold WHERE hold.request_id = ANY (settled);
    GET DIAGNOSTICS n = ROW_COUNT;
    IF rows <> cardinality(settled) OR n <> cardinality(settled) THEN
      RAISE EXCEPTION 'settled % calls, wrote % and ended % holds', cardinality(settled), rows, n
        USING ERRCODE = 'integrity_constraint_violation';
    END IF;
  END IF;

  IF cardinality(resized) > 0 THEN
    UPDATE hold ho SET amount_nanos = x.amount, tokens = x.tokens, expired_at = x.expired, run_id = coalesce(x.run, ho.run_id),
           created_at = coalesce(x.created, ho.created_at)
      FROM unnest(resized, resized_amount, resized_tokens, resized_expired, new_run, new_created)
        AS x (rid, amount, tokens, expired, run, created)
     WHERE ho.request_id = x.rid;
  END IF;

  IF wanted > 0 THEN
    INSERT INTO hold (request_id, account_id, key_id, model, amount_nanos, tokens, price_version, run_id, created_at)
    SELECT q.rid, q.account_id, q.key_id, q.model, q.held, q.tokens, q.price_version,
           CASE WHEN q.standing THEN -1 ELSE _run_id END, coalesce(q.dated, moment_us)
      FROM unnest(request_ids, held_now, dates, commands) AS q (rid, held, dated)
     WHERE q.held IS NOT NULL;
  END IF;

  IF true = ANY (touched) THEN
    UPDATE account SET posted_nanos = x.posted, held_nanos = x.held, open_holds = x.holds, topped_up_nanos = x.topped_up,
           requests_full_ns = x.requests_full, tokens_full_ns = x.tokens_full
      FROM unnest(ids, posted, held, holds, topped_up, requests_full, tokens_full, touched)
        AS x (id, posted, held, holds, topped_up, requests_full, tokens_full, touched)
     WHERE account.id = x.id AND x.touched;
  END IF;

  IF cardinality(budget_keys) > 0 THEN
    UPDATE key_budget y SET since = x.since, used_nanos = x.used
      FROM unnest(budget_keys, budget_since, budget_used) AS x (id, since, used) WHERE y.key_id = x.id;
  END IF;
  IF cardinality(pace_keys) > 0 THEN
    INSERT INTO key_pace (key_id, requests_full_ns) SELECT x.id, x.state FROM unnest(pace_keys, pace_full) AS x (id, state)
    ON CONFLICT (key_id) DO UPDATE SET requests_full_ns = excluded.requests_full_ns;
  END IF;
END $$;
