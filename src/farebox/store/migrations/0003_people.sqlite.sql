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

CREATE TABLE familiar (                         -- browsers that have signed in before: no mail about them
  hash       BLOB PRIMARY KEY,                  -- SHA-256 of account and the browser's own cookie
  account_id INTEGER NOT NULL REFERENCES account (id),
  seen_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX familiar_by_account ON familiar (account_id);

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
  last_at       INTEGER NOT NULL,
  UNIQUE (account_id, day, key_id, model, outcome)
) STRICT;
INSERT INTO usage_day
  (account_id, day, key_id, model, outcome, requests, tokens, charged_nanos, list_nanos, last_at)
SELECT account_id, at / 86400000000, key_id, model, outcome, count(*),
  sum(input_tokens + cache_write_5m_tokens + cache_write_1h_tokens + cache_read_tokens + output_tokens),
  sum(charged_nanos), sum(list_nanos), max(at)
FROM usage WHERE at < (SELECT unixepoch(max(day)) * 1000000 + 86400000000 FROM day_close)
GROUP BY account_id, at / 86400000000, key_id, model, outcome;
