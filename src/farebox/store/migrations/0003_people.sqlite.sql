-- People who sign in: what proves who they are, where they are signed in, what was mailed to them.

ALTER TABLE account ADD COLUMN role TEXT NOT NULL DEFAULT 'customer' CHECK (role IN ('customer', 'admin'));
ALTER TABLE account ADD COLUMN verified_at INTEGER;  -- when the address was shown to be theirs

CREATE TABLE credential (
  account_id INTEGER PRIMARY KEY REFERENCES account (id),
  password   TEXT NOT NULL,                     -- Argon2id, with its parameters
  changed_at INTEGER NOT NULL
) STRICT;

CREATE TABLE session (
  hash       BLOB PRIMARY KEY,                  -- SHA-256; the cookie alone holds what it is of
  account_id INTEGER NOT NULL REFERENCES account (id),
  created_at INTEGER NOT NULL,
  seen_at    INTEGER NOT NULL,
  ends_at    INTEGER NOT NULL,
  sure_at    INTEGER NOT NULL,                  -- when the password was last given
  factor_at  INTEGER,                           -- when a second factor was last given
  viewing    INTEGER,                           -- the customer that an operator looks at as
  agent      TEXT NOT NULL,
  address    TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX session_by_account ON session (account_id);

CREATE TABLE token (                            -- links in mails: each works once
  hash       BLOB PRIMARY KEY,
  account_id INTEGER NOT NULL REFERENCES account (id),
  purpose    TEXT NOT NULL CHECK (purpose IN ('verify', 'reset', 'email')),
  email      TEXT NOT NULL,                     -- the address it was mailed to
  ends_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE failure (                          -- wrong passwords, by account and by network
  name  TEXT PRIMARY KEY,
  count INTEGER NOT NULL,
  at    INTEGER NOT NULL
) STRICT;

CREATE TABLE outbox (
  id        INTEGER PRIMARY KEY,
  at        INTEGER NOT NULL,
  recipient TEXT NOT NULL,
  subject   TEXT NOT NULL,
  body      TEXT NOT NULL,
  asked     INTEGER NOT NULL DEFAULT 0,          -- 1: by a form that anybody can send
  sent_at   INTEGER,
  tries     INTEGER NOT NULL DEFAULT 0,
  next_at   INTEGER NOT NULL,
  error     TEXT
) STRICT;
CREATE INDEX outbox_by_recipient ON outbox (recipient, at);
CREATE INDEX outbox_unsent ON outbox (id) WHERE sent_at IS NULL;

CREATE TABLE familiar (                         -- browsers that have signed in before: no mail about them
  hash       BLOB PRIMARY KEY,                  -- SHA-256 of account and the browser's own cookie
  account_id INTEGER NOT NULL REFERENCES account (id),
  seen_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX familiar_by_account ON familiar (account_id);

CREATE TABLE totp (                             -- the second factor by an app (RFC 6238)
  account_id INTEGER PRIMARY KEY REFERENCES account (id),
  secret     BLOB NOT NULL,                     -- sealed
  set_at     INTEGER,                           -- NULL until the first code was right
  last_step  INTEGER NOT NULL DEFAULT 0         -- of the last code that was taken: none counts twice
) STRICT;

CREATE TABLE recovery_code (                    -- each works once
  hash       BLOB PRIMARY KEY,
  account_id INTEGER NOT NULL REFERENCES account (id)
) STRICT, WITHOUT ROWID;
CREATE INDEX recovery_code_by_account ON recovery_code (account_id);

CREATE TABLE passkey (                          -- WebAuthn credentials
  id         BLOB PRIMARY KEY,
  account_id INTEGER NOT NULL REFERENCES account (id),
  public_key BLOB NOT NULL,
  signs      INTEGER NOT NULL,                  -- the authenticator's own counter
  name       TEXT NOT NULL,
  transports TEXT NOT NULL,                     -- JSON: how a browser reaches it
  created_at INTEGER NOT NULL,
  used_at    INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX passkey_by_account ON passkey (account_id);

CREATE TABLE challenge (                        -- what a browser was sent away with and must come back with, once
  hash       BLOB PRIMARY KEY,
  account_id INTEGER,                           -- NULL: who it is comes out at the end
  purpose    TEXT NOT NULL,
  data       TEXT NOT NULL,
  ends_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE identity (                         -- who they are at GitHub, Google or another provider
  id         TEXT PRIMARY KEY,              -- "provider:subject"
  provider   TEXT NOT NULL,
  account_id INTEGER NOT NULL REFERENCES account (id),
  name       TEXT NOT NULL,
  created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX identity_by_account ON identity (account_id);

CREATE TABLE invitation (
  id         INTEGER PRIMARY KEY,
  hash       BLOB NOT NULL UNIQUE,
  email      TEXT NOT NULL,                     -- empty: for whoever has the link
  note       TEXT NOT NULL,
  created_by TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  ends_at    INTEGER NOT NULL,
  revoked_at INTEGER,
  used_at    INTEGER,
  account_id INTEGER                            -- who came by it
) STRICT;

CREATE TABLE secret (                           -- keys of the service itself: what seals others, what signs receipts
  name       TEXT PRIMARY KEY,
  value      BLOB NOT NULL,
  created_at INTEGER NOT NULL
) STRICT;

-- What one key may do. NULL or empty: whatever its account may.
ALTER TABLE api_key ADD COLUMN disabled_at INTEGER;             -- reversible; revoked is not
ALTER TABLE api_key ADD COLUMN models TEXT NOT NULL DEFAULT ''; -- ids, separated by spaces
ALTER TABLE api_key ADD COLUMN networks TEXT NOT NULL DEFAULT ''; -- CIDR, separated by spaces
ALTER TABLE api_key ADD COLUMN requests_per_minute INTEGER CHECK (requests_per_minute > 0);
ALTER TABLE api_key ADD COLUMN replaced_by INTEGER;             -- the key that it was rolled into
ALTER TABLE api_key ADD COLUMN purpose TEXT NOT NULL DEFAULT 'client' CHECK (purpose IN ('client', 'playground'));

CREATE TABLE key_budget (                       -- spend limits of keys; moved by the ledger alone
  key_id      INTEGER PRIMARY KEY REFERENCES api_key (id),
  limit_nanos INTEGER NOT NULL CHECK (limit_nanos >= 0),
  resets      TEXT NOT NULL CHECK (resets IN ('never', 'daily', 'weekly', 'monthly')),
  since       INTEGER NOT NULL,                 -- when the present period began
  used_nanos  INTEGER NOT NULL DEFAULT 0 CHECK (used_nanos >= 0)  -- charged and held since then
) STRICT;

CREATE TABLE key_pace (                         -- of keys with a limit of requests of their own; moved by the ledger alone
  key_id           INTEGER PRIMARY KEY REFERENCES api_key (id),
  requests_full_ns INTEGER NOT NULL                 -- GCRA state: when the bucket is full again
) STRICT;

-- An account's own limits instead of its plan's.
ALTER TABLE account ADD COLUMN requests_per_minute INTEGER CHECK (requests_per_minute > 0);
ALTER TABLE account ADD COLUMN tokens_per_minute INTEGER CHECK (tokens_per_minute > 0);
ALTER TABLE account ADD COLUMN concurrent INTEGER CHECK (concurrent >= 0);
ALTER TABLE account ADD COLUMN notes TEXT NOT NULL DEFAULT '';  -- the operator's, shown to nobody else
ALTER TABLE account ADD COLUMN details TEXT NOT NULL DEFAULT ''; -- name and address for receipts, as the customer gave them

-- What a call said of itself and what became of it on the way, for its page.
ALTER TABLE usage ADD COLUMN session TEXT;      -- x-claude-code-session-id
ALTER TABLE usage ADD COLUMN agent TEXT;        -- x-claude-code-agent-id, of a sub-agent
ALTER TABLE usage ADD COLUMN parent_agent TEXT; -- x-claude-code-parent-agent-id
ALTER TABLE usage ADD COLUMN held_nanos INTEGER; -- the most that was held for it
ALTER TABLE usage ADD COLUMN tries TEXT;        -- JSON: its attempts at upstreams, where there was more than one
CREATE INDEX usage_by_session ON usage (account_id, session, at) WHERE session IS NOT NULL;

CREATE TABLE stopped_session (                  -- Claude Code sessions whose calls are refused
  id         INTEGER PRIMARY KEY,
  account_id INTEGER NOT NULL REFERENCES account (id),
  session    TEXT NOT NULL,
  stopped_at INTEGER NOT NULL,
  UNIQUE (account_id, session)
) STRICT;

CREATE TABLE alert (                            -- mails a customer asked for
  id         INTEGER PRIMARY KEY,
  account_id INTEGER NOT NULL REFERENCES account (id),
  kind       TEXT NOT NULL CHECK (kind IN ('balance', 'used_up', 'daily_spend')),
  at_nanos   INTEGER NOT NULL CHECK (at_nanos >= 0),
  told_at    INTEGER,                           -- NULL: armed
  day        INTEGER,                           -- of a daily one: the day it is about, in days since 1970 ...
  base_nanos INTEGER,                           -- ... and what was in the balance as it began
  UNIQUE (account_id, kind)
) STRICT;

CREATE TABLE webhook (                          -- where a customer's own server is told of events (Standard Webhooks)
  id          INTEGER PRIMARY KEY,
  account_id  INTEGER NOT NULL REFERENCES account (id),
  url         TEXT NOT NULL,
  events      TEXT NOT NULL,                    -- names, separated by spaces
  secret      BLOB NOT NULL,                    -- sealed
  created_at  INTEGER NOT NULL,
  disabled_at INTEGER,
  failures    INTEGER NOT NULL DEFAULT 0        -- in a row
) STRICT;
CREATE INDEX webhook_by_account ON webhook (account_id);

CREATE TABLE delivery (                         -- one event on its way to one webhook
  id         TEXT PRIMARY KEY,
  webhook_id INTEGER NOT NULL REFERENCES webhook (id),
  event      TEXT NOT NULL,
  body       TEXT NOT NULL,
  at         INTEGER NOT NULL,
  next_at    INTEGER NOT NULL,
  tries      INTEGER NOT NULL DEFAULT 0,
  done_at    INTEGER,                           -- delivered, or given up
  status     INTEGER,                           -- what the other side last answered
  error      TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX delivery_by_webhook ON delivery (webhook_id, at);
CREATE INDEX delivery_by_due ON delivery (webhook_id, next_at) WHERE done_at IS NULL;

CREATE TABLE topup (                            -- a customer's wish to pay, and what became of it
  id           TEXT PRIMARY KEY,
  account_id   INTEGER NOT NULL REFERENCES account (id),
  rail         TEXT NOT NULL,
  asset        TEXT NOT NULL,
  amount_nanos INTEGER NOT NULL CHECK (amount_nanos > 0),
  asked_units  TEXT NOT NULL,                   -- of the asset's smallest unit: more than 64 bits for some
  address      TEXT NOT NULL,
  rate         TEXT NOT NULL,                   -- JSON: the quote and where it came from
  state        TEXT NOT NULL CHECK (state IN ('waiting', 'seen', 'confirming', 'credited', 'expired')),
  confirmations INTEGER NOT NULL DEFAULT 0,
  needed       INTEGER NOT NULL,
  paid_units   TEXT NOT NULL DEFAULT '0',
  created_at   INTEGER NOT NULL,
  ends_at      INTEGER NOT NULL,                -- of the quote
  changed_at   INTEGER NOT NULL,
  transfer_id  TEXT                             -- the entry that credited it
) STRICT, WITHOUT ROWID;
CREATE INDEX topup_by_account ON topup (account_id, created_at);

CREATE TABLE announcement (
  id         INTEGER PRIMARY KEY,
  level      TEXT NOT NULL CHECK (level IN ('info', 'warning')),
  words      TEXT NOT NULL,
  created_by TEXT NOT NULL,
  begins_at  INTEGER NOT NULL,
  ends_at    INTEGER                            -- NULL: until it is taken down
) STRICT;

CREATE TABLE upstream_switch (                  -- upstreams that get no new calls, by the operator's word
  name       TEXT PRIMARY KEY,
  drained_at INTEGER NOT NULL
) STRICT;

CREATE TABLE audit_log (                        -- what operators did, append-only
  id      INTEGER PRIMARY KEY,
  at      INTEGER NOT NULL,
  actor   TEXT NOT NULL,
  address TEXT NOT NULL,                        -- from where
  action  TEXT NOT NULL,
  target  TEXT NOT NULL,
  before  TEXT,                                 -- JSON
  after   TEXT,                                 -- JSON
  reason  TEXT NOT NULL
) STRICT;
CREATE INDEX audit_log_by_target ON audit_log (target, id);

ALTER TABLE price_list ADD COLUMN source TEXT NOT NULL DEFAULT 'file' CHECK (source IN ('file', 'admin'));

CREATE TRIGGER audit_log_is_not_updated BEFORE UPDATE ON audit_log BEGIN SELECT RAISE(ABORT, 'the audit log is never changed'); END;
CREATE TRIGGER audit_log_is_not_deleted BEFORE DELETE ON audit_log BEGIN SELECT RAISE(ABORT, 'the audit log is never changed'); END;

-- Sums over the usage of closed days, which never change: what charts are drawn from. Written as a day is closed.
CREATE TABLE usage_day (
  id            INTEGER PRIMARY KEY,
  account_id    INTEGER NOT NULL REFERENCES account (id),
  day           INTEGER NOT NULL,                 -- days since 1970, UTC
  key_id        INTEGER NOT NULL,
  model         TEXT NOT NULL,
  outcome       TEXT NOT NULL,
  requests      INTEGER NOT NULL,
  tokens        INTEGER NOT NULL,
  charged_nanos INTEGER NOT NULL,
  list_nanos    INTEGER NOT NULL,
  waived_nanos  INTEGER NOT NULL,
  shortfall_nanos INTEGER NOT NULL,
  last_at       INTEGER NOT NULL,
  UNIQUE (account_id, day, key_id, model, outcome)
) STRICT;
CREATE INDEX usage_day_by_day ON usage_day (day);
INSERT INTO usage_day
  (account_id, day, key_id, model, outcome, requests, tokens, charged_nanos, list_nanos, waived_nanos,
   shortfall_nanos, last_at)
SELECT account_id, at / 86400000000, key_id, model, outcome, count(*),
  sum(input_tokens + cache_write_5m_tokens + cache_write_1h_tokens + cache_read_tokens + output_tokens),
  sum(charged_nanos), sum(list_nanos), sum(waived_nanos), sum(shortfall_nanos), max(at)
FROM usage WHERE at < (SELECT unixepoch(max(day)) * 1000000 + 86400000000 FROM day_close)
GROUP BY account_id, at / 86400000000, key_id, model, outcome;

CREATE TABLE session_day (                      -- the same by Claude Code session and agent, of calls that named one
  id            INTEGER PRIMARY KEY,
  account_id    INTEGER NOT NULL REFERENCES account (id),
  day           INTEGER NOT NULL,
  session       TEXT NOT NULL,
  agent         TEXT NOT NULL,                    -- empty: the session itself, no agent of it
  parent_agent  TEXT NOT NULL,
  requests      INTEGER NOT NULL,
  tokens        INTEGER NOT NULL,
  charged_nanos INTEGER NOT NULL,
  first_at      INTEGER NOT NULL,
  last_at       INTEGER NOT NULL,
  UNIQUE (account_id, day, session, agent, parent_agent)
) STRICT;
CREATE INDEX session_day_by_session ON session_day (account_id, session);
