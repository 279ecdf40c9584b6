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
  purpose    TEXT NOT NULL CHECK (purpose IN ('verify', 'reset')),
  email      TEXT NOT NULL,
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
  sent_at   INTEGER,
  tries     INTEGER NOT NULL DEFAULT 0,
  next_at   INTEGER NOT NULL,
  error     TEXT
) STRICT;
