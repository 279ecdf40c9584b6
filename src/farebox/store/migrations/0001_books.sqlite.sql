-- The books. Amounts are integer nano-dollars, moments integer microseconds UTC, tables STRICT so that no sum can turn
-- into a float. `usage`, `transfer`, `price_list` and `day_close` are append-only: triggers refuse anything else.

CREATE TABLE account (
  id              INTEGER PRIMARY KEY,
  email           TEXT NOT NULL UNIQUE,
  status          TEXT NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'suspended', 'closed')),
  plan            TEXT NOT NULL,
  posted_nanos    INTEGER NOT NULL DEFAULT 0,
  held_nanos      INTEGER NOT NULL DEFAULT 0 CHECK (held_nanos >= 0),
  open_holds      INTEGER NOT NULL DEFAULT 0 CHECK (open_holds >= 0),
  topped_up_nanos INTEGER NOT NULL DEFAULT 0,
  requests_full_ns INTEGER NOT NULL DEFAULT 0,  -- GCRA state: when the bucket of requests is full again
  tokens_full_ns  INTEGER NOT NULL DEFAULT 0,   -- the same for tokens
  created_at      INTEGER NOT NULL,
  CHECK (posted_nanos >= held_nanos)            -- promise 3: a balance never goes below zero
) STRICT;

CREATE TABLE api_key (
  id         INTEGER PRIMARY KEY,
  account_id INTEGER NOT NULL REFERENCES account (id),
  name       TEXT NOT NULL,
  hash       BLOB NOT NULL UNIQUE,              -- SHA-256; the key itself is shown once and never kept
  hint       TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  expires_at INTEGER,
  revoked_at INTEGER
) STRICT;
CREATE INDEX api_key_by_account ON api_key (account_id);

CREATE TABLE run (                              -- one row per start of a serving process
  id         INTEGER PRIMARY KEY,
  started_at INTEGER NOT NULL,
  stopped_at INTEGER
) STRICT;

CREATE TABLE price_list (
  version    INTEGER PRIMARY KEY,
  sha256     TEXT NOT NULL,
  models     TEXT NOT NULL,
  created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE hold (                             -- requests in flight, and nothing else
  request_id    BLOB PRIMARY KEY,
  account_id    INTEGER NOT NULL REFERENCES account (id),
  key_id        INTEGER NOT NULL,
  model         TEXT NOT NULL,
  amount_nanos  INTEGER NOT NULL CHECK (amount_nanos >= 0),
  tokens        INTEGER NOT NULL,               -- taken from the token bucket so far
  price_version INTEGER NOT NULL,
  run_id        INTEGER NOT NULL,
  created_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE usage (                            -- one row per admitted call: the entry customer -> revenue
  request_id      BLOB PRIMARY KEY,
  at              INTEGER NOT NULL,
  account_id      INTEGER NOT NULL REFERENCES account (id),
  key_id          INTEGER NOT NULL,
  kind            TEXT NOT NULL CHECK (kind IN ('exact', 'estimated', 'waived', 'failed', 'recovered', 'late')),
  model           TEXT NOT NULL,                -- that answered, or was asked for when nothing did
  asked_model     TEXT NOT NULL,
  price_version   INTEGER NOT NULL,
  input_tokens          INTEGER NOT NULL DEFAULT 0,
  cache_write_5m_tokens INTEGER NOT NULL DEFAULT 0,
  cache_write_1h_tokens INTEGER NOT NULL DEFAULT 0,
  cache_read_tokens     INTEGER NOT NULL DEFAULT 0,
  output_tokens         INTEGER NOT NULL DEFAULT 0,
  web_searches          INTEGER NOT NULL DEFAULT 0,
  detail          TEXT,                         -- the whole usage as JSON, where the columns cannot say it
  cost_nanos      INTEGER NOT NULL,
  list_nanos      INTEGER NOT NULL,
  charged_nanos   INTEGER NOT NULL CHECK (charged_nanos >= 0),
  shortfall_nanos INTEGER NOT NULL CHECK (shortfall_nanos >= 0),
  waived_nanos    INTEGER NOT NULL CHECK (waived_nanos >= 0),
  status          INTEGER NOT NULL,             -- HTTP status the customer saw
  outcome         TEXT NOT NULL,                -- finished, client_gone, upstream_broke, ...
  stop_reason     TEXT,
  message_id      TEXT,                         -- the upstream's
  upstream        TEXT,
  upstream_request_id TEXT,
  attempts        INTEGER NOT NULL DEFAULT 0,
  streamed        INTEGER NOT NULL DEFAULT 0,
  first_byte_us   INTEGER,
  duration_us     INTEGER NOT NULL DEFAULT 0,
  CHECK (cost_nanos = charged_nanos + shortfall_nanos + waived_nanos)
) STRICT, WITHOUT ROWID;
CREATE INDEX usage_by_account ON usage (account_id, at);
CREATE INDEX usage_by_time ON usage (at);

CREATE TABLE transfer (                         -- one debit and one credit account: the sum is zero by construction
  id             TEXT PRIMARY KEY,              -- chosen before the first try: posting twice is posting once
  at             INTEGER NOT NULL,
  debit_account  TEXT NOT NULL,
  credit_account TEXT NOT NULL,
  amount_nanos   INTEGER NOT NULL CHECK (amount_nanos > 0),
  code           TEXT NOT NULL,
  actor          TEXT NOT NULL,
  memo           TEXT NOT NULL,
  CHECK (debit_account <> credit_account)
) STRICT;
CREATE INDEX transfer_by_debit ON transfer (debit_account, at);
CREATE INDEX transfer_by_credit ON transfer (credit_account, at);
CREATE INDEX transfer_by_time ON transfer (at);

CREATE TABLE day_close (                        -- promise 7: a chain of digests over the entries of each day
  day             TEXT PRIMARY KEY,
  usage_rows      INTEGER NOT NULL,
  transfer_rows   INTEGER NOT NULL,
  previous_sha256 TEXT NOT NULL,
  sha256          TEXT NOT NULL,
  closed_at       INTEGER NOT NULL
) STRICT;

CREATE TRIGGER usage_is_not_updated BEFORE UPDATE ON usage BEGIN SELECT RAISE(ABORT, 'usage rows are never changed'); END;
CREATE TRIGGER usage_is_not_deleted BEFORE DELETE ON usage BEGIN SELECT RAISE(ABORT, 'usage rows are never deleted'); END;
CREATE TRIGGER transfer_is_not_updated BEFORE UPDATE ON transfer BEGIN SELECT RAISE(ABORT, 'transfers are never changed'); END;
CREATE TRIGGER transfer_is_not_deleted BEFORE DELETE ON transfer BEGIN SELECT RAISE(ABORT, 'transfers are never deleted'); END;
CREATE TRIGGER price_list_is_not_updated BEFORE UPDATE ON price_list BEGIN SELECT RAISE(ABORT, 'prices are superseded, never changed'); END;
CREATE TRIGGER price_list_is_not_deleted BEFORE DELETE ON price_list BEGIN SELECT RAISE(ABORT, 'prices are superseded, never deleted'); END;
CREATE TRIGGER day_close_is_not_updated BEFORE UPDATE ON day_close BEGIN SELECT RAISE(ABORT, 'a closed day stays closed'); END;
CREATE TRIGGER day_close_is_not_deleted BEFORE DELETE ON day_close BEGIN SELECT RAISE(ABORT, 'a closed day stays closed'); END;
