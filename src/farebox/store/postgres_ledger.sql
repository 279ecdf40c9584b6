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
  first_byte_us bigint, duration_us bigint, id text, debit_account text, credit_account text, code text, actor text,
  memo text
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
-- An answer a command, by its place in the batch; a to g are what its verdict needs (see postgres.py).
CREATE FUNCTION apply_batch(
  _batch json, _accounts bigint[], _plan_names text[], _plan_requests bigint[], _plan_tokens bigint[],
  _plan_concurrent bigint[], _run_id bigint, _given_now_us bigint,
  OUT ord bigint, OUT verdict text, OUT a bigint, OUT b bigint, OUT c bigint, OUT d bigint, OUT e bigint, OUT f bigint,
  OUT g bigint
) RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
  commands ledger_command[];
  request_ids bytea[];
  ids bigint[]; statuses text[]; plans int[];
  posted bigint[]; held bigint[]; holds bigint[]; topped_up bigint[]; requests_full bigint[]; tokens_full bigint[];
  touched boolean[];
  held_now bigint[]; charged bigint[]; short bigint[]; kinds text[];
  settled bytea[] := '{}';
  resized bytea[] := '{}'; resized_amount bigint[] := '{}'; resized_tokens bigint[] := '{}'; resized_expired bigint[] := '{}';
  new_run bigint[] := '{}';
  moment_us bigint; moment_ns bigint; entry_us bigint;
  r record; n int; s int; s2 int; plan int; free bigint; rq bigint; tk bigint; wait bigint; amount bigint; rows int;
  requests_pm bigint; tokens_pm bigint; wanted int := 0;
BEGIN
  SELECT array_agg(x.id), array_agg(x.status), array_agg(coalesce(array_position(_plan_names, x.plan), 1)),
         array_agg(x.posted_nanos), array_agg(x.held_nanos), array_agg(x.open_holds), array_agg(x.topped_up_nanos),
         array_agg(x.requests_full_ns), array_agg(x.tokens_full_ns), array_agg(false)
    INTO ids, statuses, plans, posted, held, holds, topped_up, requests_full, tokens_full, touched
    FROM (SELECT * FROM account WHERE account.id = ANY (_accounts) ORDER BY account.id FOR NO KEY UPDATE) x;

  moment_us := coalesce(_given_now_us, now_us());
  moment_ns := moment_us * 1000;
  -- no entry is older than the last closed day, so that none slips into a digest already taken
  SELECT greatest(moment_us, coalesce(extract(epoch FROM max(day)::date + 1)::bigint * 1000000, 0)) INTO entry_us FROM day_close;

  SELECT array_agg(x), array_agg(decode(x.request_id, 'base64')) INTO commands, request_ids
    FROM json_populate_recordset(NULL::ledger_command, _batch) x;
  n := cardinality(commands);
  held_now := array_fill(NULL::bigint, ARRAY[n]);
  charged := held_now; short := held_now; kinds := array_fill(NULL::text, ARRAY[n]);

  FOR r IN
    SELECT q.*, array_position(ids, q.account_id) AS slot,
           h.account_id IS NOT NULL AS is_taken, (h.account_id = q.account_id) IS TRUE AS is_held,
           h.amount_nanos AS hold_amount, h.tokens AS hold_tokens,
           h.expired_at IS NOT NULL AS has_expired,
           u.request_id IS NOT NULL AS is_settled, u.charged_nanos AS was_charged, u.shortfall_nanos AS was_short,
           u.kind AS was_kind,
           k.account_id = q.account_id AND k.revoked_at IS NULL
             AND (k.expires_at IS NULL OR moment_us < k.expires_at) AS key_counts
      FROM unnest(commands, request_ids) WITH ORDINALITY AS q (
        type, request_id, account_id, key_id, model, amount_nanos, least_nanos, tokens, price_version, kind, outcome,
        status, cost_nanos, list_nanos, waive, input_tokens, cache_write_5m_tokens, cache_write_1h_tokens,
        cache_read_tokens, output_tokens, web_searches, limited_tokens, detail, stop_reason, message_id, upstream,
        upstream_request_id, attempts, streamed, first_byte_us, duration_us, id, debit_account, credit_account, code,
        actor, memo, rid, place)
      LEFT JOIN hold h ON h.request_id = q.rid
      LEFT JOIN usage u ON u.request_id = q.rid
      LEFT JOIN api_key k ON k.id = q.key_id
     ORDER BY q.place
  LOOP
    ord := r.place; verdict := NULL; a := NULL; b := NULL; c := NULL; d := NULL; e := NULL; f := NULL; g := NULL;
    s := r.slot;
    IF r.type = 'settle' THEN
      IF s IS NULL OR NOT r.is_held THEN
        verdict := CASE WHEN NOT r.is_settled THEN 'unknown' WHEN r.was_kind = 'recovered' THEN 'recovered' ELSE 'settled_before' END;
        a := r.was_charged; b := r.was_short;
      ELSE
        held[s] := held[s] - r.hold_amount;
        IF NOT r.has_expired THEN holds[s] := holds[s] - 1; END IF;
        amount := CASE WHEN r.waive THEN 0 ELSE least(r.cost_nanos, posted[s] - held[s]) END;
        posted[s] := posted[s] - amount;
        IF r.limited_tokens <> r.hold_tokens THEN
          tokens_full[s] := bucket_spend(bucket_state(tokens_full[s], moment_ns), r.limited_tokens - r.hold_tokens, _plan_tokens[plans[s]]);
        END IF;
        verdict := 'settled'; a := amount; b := CASE WHEN r.waive THEN 0 ELSE r.cost_nanos - amount END;
        touched[s] := true; charged[ord] := a; short[ord] := b; settled := settled || r.rid;
        kinds[ord] := CASE WHEN r.has_expired AND r.kind IN ('exact', 'estimated') THEN 'late' ELSE r.kind END;
      END IF;

    ELSIF r.type = 'expire' THEN
      IF s IS NULL OR NOT r.is_held OR r.has_expired THEN
        verdict := 'not_held';
      ELSE
        held[s] := held[s] - r.hold_amount; holds[s] := holds[s] - 1; touched[s] := true;
        verdict := 'expired'; a := r.hold_amount;
        resized := resized || r.rid; resized_amount := resized_amount || 0::bigint;
        resized_tokens := resized_tokens || r.hold_tokens; resized_expired := resized_expired || moment_us;
        new_run := new_run || NULL::bigint;
      END IF;

    ELSIF r.type = 'resize' THEN
      IF s IS NULL OR NOT r.is_held THEN
        verdict := 'gone';
      ELSE
        IF r.has_expired THEN holds[s] := holds[s] + 1; END IF;
        held[s] := held[s] - r.hold_amount;  -- first, so that no sum leaves 64 bits
        amount := least(r.amount_nanos, posted[s] - held[s]);
        held[s] := held[s] + amount;
        IF r.tokens <> r.hold_tokens THEN
          tokens_full[s] := bucket_spend(bucket_state(tokens_full[s], moment_ns), r.tokens - r.hold_tokens, _plan_tokens[plans[s]]);
        END IF;
        verdict := 'resized'; a := amount; touched[s] := true;
        resized := resized || r.rid; resized_amount := resized_amount || amount;
        resized_tokens := resized_tokens || r.tokens; resized_expired := resized_expired || NULL::bigint;
        new_run := new_run || _run_id;
      END IF;

    ELSIF r.type = 'admit' THEN
      IF s IS NULL OR r.key_counts IS NOT TRUE THEN
        verdict := 'key_invalid';
      ELSE
        plan := plans[s]; requests_pm := _plan_requests[plan]; tokens_pm := _plan_tokens[plan];
        rq := bucket_state(requests_full[s], moment_ns); tk := bucket_state(tokens_full[s], moment_ns);
        free := posted[s] - held[s]; wait := 0; amount := 0;
        IF r.is_taken OR r.is_settled THEN
          verdict := 'duplicate'; amount := CASE WHEN r.is_held THEN r.hold_amount END;
        ELSIF statuses[s] <> 'active' THEN
          verdict := 'suspended';
        ELSE
          wait := greatest(0, bucket_spend(rq, least(1, requests_pm), requests_pm) - moment_ns - 60000000000);
          IF wait > 0 THEN
            verdict := 'requests_limited';
          ELSE
            wait := greatest(0, bucket_spend(tk, least(r.tokens, tokens_pm), tokens_pm) - moment_ns - 60000000000);
            IF wait > 0 THEN
              verdict := 'tokens_limited';
            ELSIF holds[s] >= _plan_concurrent[plan] THEN
              verdict := 'too_many_at_once';
            ELSIF r.least_nanos > free OR free <= 0 THEN
              verdict := 'insufficient';
            ELSE
              verdict := 'admitted';
              rq := bucket_spend(rq, 1, requests_pm); tk := bucket_spend(tk, r.tokens, tokens_pm);
              requests_full[s] := rq; tokens_full[s] := tk;
              amount := least(r.amount_nanos, free);
              held[s] := held[s] + amount; holds[s] := holds[s] + 1;
              touched[s] := true; held_now[ord] := amount; wanted := wanted + 1;
            END IF;
          END IF;
        END IF;
        a := amount; b := free; c := wait; d := rq; e := tk; f := plan; g := moment_ns;
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
      upstream_request_id, attempts, streamed, first_byte_us, duration_us)
    SELECT h.request_id, entry_us, h.account_id, h.key_id, q.ended, q.model, h.model, h.price_version, q.input_tokens,
           q.cache_write_5m_tokens, q.cache_write_1h_tokens, q.cache_read_tokens, q.output_tokens, q.web_searches,
           q.detail, q.cost_nanos, q.list_nanos, q.charged, q.short, CASE WHEN q.waive THEN q.cost_nanos ELSE 0 END,
           q.status, q.outcome, q.stop_reason, q.message_id, q.upstream, q.upstream_request_id, q.attempts,
           q.streamed::int, q.first_byte_us, q.duration_us
      FROM unnest(commands, request_ids, charged, short, kinds) AS q (
        type, request_id, account_id, key_id, model, amount_nanos, least_nanos, tokens, price_version, kind, outcome,
        status, cost_nanos, list_nanos, waive, input_tokens, cache_write_5m_tokens, cache_write_1h_tokens,
        cache_read_tokens, output_tokens, web_searches, limited_tokens, detail, stop_reason, message_id, upstream,
        upstream_request_id, attempts, streamed, first_byte_us, duration_us, id, debit_account, credit_account, code,
        actor, memo, rid, charged, short, ended)
      JOIN hold h ON h.request_id = q.rid
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
    UPDATE hold h SET amount_nanos = x.amount, tokens = x.tokens, expired_at = x.expired, run_id = coalesce(x.run, h.run_id)
      FROM unnest(resized, resized_amount, resized_tokens, resized_expired, new_run) AS x (rid, amount, tokens, expired, run)
     WHERE h.request_id = x.rid;
  END IF;

  IF wanted > 0 THEN
    INSERT INTO hold (request_id, account_id, key_id, model, amount_nanos, tokens, price_version, run_id, created_at)
    SELECT q.rid, q.account_id, q.key_id, q.model, q.held, q.tokens, q.price_version, _run_id, moment_us
      FROM unnest(commands, request_ids, held_now) AS q (
        type, request_id, account_id, key_id, model, amount_nanos, least_nanos, tokens, price_version, kind, outcome,
        status, cost_nanos, list_nanos, waive, input_tokens, cache_write_5m_tokens, cache_write_1h_tokens,
        cache_read_tokens, output_tokens, web_searches, limited_tokens, detail, stop_reason, message_id, upstream,
        upstream_request_id, attempts, streamed, first_byte_us, duration_us, id, debit_account, credit_account, code,
        actor, memo, rid, held)
     WHERE q.held IS NOT NULL;
  END IF;

  IF true = ANY (touched) THEN
    UPDATE account SET posted_nanos = x.posted, held_nanos = x.held, open_holds = x.holds, topped_up_nanos = x.topped_up,
           requests_full_ns = x.requests_full, tokens_full_ns = x.tokens_full
      FROM unnest(ids, posted, held, holds, topped_up, requests_full, tokens_full, touched)
        AS x (id, posted, held, holds, topped_up, requests_full, tokens_full, touched)
     WHERE account.id = x.id AND x.touched;
  END IF;
END $$;
