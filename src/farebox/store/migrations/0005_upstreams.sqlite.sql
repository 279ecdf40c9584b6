-- Upstreams that operators enter in admin, and what calls leave behind at an upstream.

CREATE TABLE upstream (                         -- entered in admin, beside those of the configuration
  id         INTEGER PRIMARY KEY,
  name       TEXT NOT NULL UNIQUE,              -- never that of one in the configuration; kept in usage rows
  settings   TEXT NOT NULL,                     -- JSON, without anything secret
  secrets    BLOB,                              -- JSON of what is secret, sealed; never shown again
  set_at     TEXT NOT NULL DEFAULT '{}',        -- JSON: which secrets there are, and when each was set
  created_at INTEGER NOT NULL,
  changed_at INTEGER NOT NULL
) STRICT;

CREATE TABLE batch (                            -- a message batch: what it is, never what is asked in it
  id            TEXT PRIMARY KEY,               -- msgbatch_…, as customers see it; later ones sort behind
  account_id    INTEGER NOT NULL REFERENCES account (id),
  key_id        INTEGER NOT NULL,
  way           TEXT NOT NULL CHECK (way IN ('native', 'own')),  -- run by the upstream, or by Farebox itself
  state         TEXT NOT NULL CHECK (state IN ('creating', 'in_progress', 'canceling', 'ended')),
  price_version INTEGER NOT NULL,
  percent       INTEGER NOT NULL CHECK (percent > 0),  -- of the normal price; of a native one the model says it
  upstream      TEXT,                           -- native: where it is, and what it is called there
  upstream_id   TEXT,
  headers       TEXT NOT NULL DEFAULT '[]',     -- own: version and betas that its items go up with
  wrapped_key   BLOB,                           -- own: the key of its contents, under the API key that made it
  sealed_key    BLOB,                           -- own: the same under the server's seal, where it may go on by itself
  run_id        INTEGER NOT NULL,               -- who makes it, or works on it
  lease_until   INTEGER NOT NULL DEFAULT 0,
  created_at    INTEGER NOT NULL,
  expires_at    INTEGER NOT NULL,
  cancel_at     INTEGER,
  ended_at      INTEGER,
  archived_at   INTEGER,
  items         INTEGER NOT NULL,
  held_nanos    INTEGER NOT NULL,                -- as it was made
  charged_nanos INTEGER NOT NULL DEFAULT 0,      -- known once it has ended
  succeeded     INTEGER NOT NULL DEFAULT 0,     -- counted once it has ended
  errored       INTEGER NOT NULL DEFAULT 0,
  canceled      INTEGER NOT NULL DEFAULT 0,
  expired       INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX batch_by_account ON batch (account_id, id);
CREATE INDEX batch_open ON batch (state) WHERE state <> 'ended';

CREATE TABLE batch_item (
  id          BLOB PRIMARY KEY,                 -- also of its hold, and then of its usage row
  batch_id    TEXT NOT NULL REFERENCES batch (id),
  place       INTEGER NOT NULL,
  custom_id   TEXT NOT NULL,
  model       TEXT NOT NULL,
  caches_long INTEGER NOT NULL,
  state       TEXT NOT NULL
    CHECK (state IN ('waiting', 'sent', 'answered', 'succeeded', 'errored', 'canceled', 'expired')),
  sends       INTEGER NOT NULL DEFAULT 0,
  settle      TEXT,                             -- own, answered: how its hold is to be ended, as JSON
  body        BLOB,                             -- own: what is asked and answered, under the key of the batch
  result      BLOB
) STRICT, WITHOUT ROWID;
CREATE INDEX batch_item_by_batch ON batch_item (batch_id, state, place);

CREATE TABLE bill_day (                         -- what an upstream bills for a day and model beside what was metered
  id            INTEGER PRIMARY KEY,
  bill          TEXT NOT NULL,
  day           TEXT NOT NULL,
  model         TEXT NOT NULL,                  -- empty: nothing was billed or metered
  metered_nanos INTEGER NOT NULL,            -- at list prices
  billed_nanos  INTEGER NOT NULL,
  fetched_at    INTEGER NOT NULL,
  UNIQUE (bill, day, model)
) STRICT;

CREATE TABLE file (                             -- a file at an upstream: whose it is, never what is in it
  id           TEXT PRIMARY KEY,          -- the upstream's
  account_id   INTEGER NOT NULL REFERENCES account (id),
  upstream     TEXT NOT NULL,
  size_bytes   INTEGER NOT NULL,
  mime_type    TEXT NOT NULL,
  filename     TEXT NOT NULL,
  downloadable INTEGER NOT NULL,
  created_at   INTEGER NOT NULL,
  expires_at   INTEGER
) STRICT;
CREATE INDEX file_by_account ON file (account_id, created_at, id);
CREATE INDEX file_by_expiry ON file (expires_at) WHERE expires_at IS NOT NULL;
