-- Payments in coins: where they are expected, what was seen of them, what came of that in the books.

CREATE TABLE watch_key (                        -- extended public keys that addresses come from; never a private one
  id          INTEGER PRIMARY KEY,
  fingerprint TEXT NOT NULL UNIQUE,             -- SHA-256 of family and key: another key is another row, with its own positions
  family      TEXT NOT NULL CHECK (family IN ('bitcoin', 'evm')),
  created_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE deposit_address (                  -- an address belongs to one account for ever
  id         INTEGER PRIMARY KEY,
  family     TEXT NOT NULL CHECK (family IN ('bitcoin', 'evm')),
  address    TEXT NOT NULL,
  key_id     INTEGER NOT NULL REFERENCES watch_key (id),
  position   INTEGER NOT NULL CHECK (position >= 0), -- i of 0/i below the key
  account_id INTEGER NOT NULL REFERENCES account (id),
  rail       TEXT NOT NULL,                     -- what it was made for
  asset      TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  used_at    INTEGER,                           -- when money was first seen there: it is not quoted again
  looked_at  INTEGER NOT NULL DEFAULT 0,        -- of ether: when its balance was last asked for
  swept_at   INTEGER,                           -- of ether: when it was seen to have sent; its balance counts no longer
  left_units TEXT,                             -- of ether: what it held after that; what comes on top is not credited
  UNIQUE (family, address),
  UNIQUE (key_id, position)
) STRICT;
CREATE UNIQUE INDEX deposit_address_fresh ON deposit_address (account_id, rail, asset, key_id) WHERE used_at IS NULL;
CREATE INDEX deposit_address_by_asset ON deposit_address (rail, asset, looked_at);

-- Top-ups say what was asked; what came is in payments.
ALTER TABLE topup RENAME TO topup_then;
DROP INDEX topup_by_account;
CREATE TABLE topup (                            -- a customer's wish to pay
  id           TEXT PRIMARY KEY,
  account_id   INTEGER NOT NULL REFERENCES account (id),
  rail         TEXT NOT NULL,
  asset        TEXT NOT NULL,
  amount_nanos INTEGER NOT NULL CHECK (amount_nanos > 0),
  asked_units  TEXT NOT NULL,                   -- of the asset's smallest unit: more than 64 bits for some
  address      TEXT NOT NULL,
  reference    TEXT NOT NULL DEFAULT '',        -- a processor's own name for it
  rate_nanos   INTEGER NOT NULL CHECK (rate_nanos > 0), -- nano-dollars a coin, as long as the quote holds
  pricing      TEXT NOT NULL,                   -- JSON: where that rate comes from
  needed       INTEGER NOT NULL,
  state        TEXT NOT NULL CHECK (state IN ('waiting', 'seen', 'confirming', 'credited', 'expired', 'reversed')),
  created_at   INTEGER NOT NULL,
  ends_at      INTEGER NOT NULL,                -- of the quote
  changed_at   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX topup_by_account ON topup (account_id, created_at);
CREATE INDEX topup_by_address ON topup (address);
CREATE INDEX topup_waiting ON topup (ends_at) WHERE state = 'waiting';
CREATE INDEX topup_by_end ON topup (ends_at);
CREATE INDEX topup_by_reference ON topup (reference) WHERE reference <> '';
INSERT INTO topup
  (id, account_id, rail, asset, amount_nanos, asked_units, address, rate_nanos, pricing, needed, state, created_at,
   ends_at, changed_at)
SELECT id, account_id, rail, asset, amount_nanos, asked_units, address,
  CASE asset WHEN 'BTC' THEN 100000000000000 WHEN 'ETH' THEN 4000000000000 ELSE 1000000000 END,
  '{"nanos":' || CASE asset WHEN 'BTC' THEN 100000000000000 WHEN 'ETH' THEN 4000000000000 ELSE 1000000000 END || ',"at":' || created_at || ',"spread_ppm":0,"sources":{"simulated":' || CASE asset WHEN 'BTC' THEN 100000000000000 WHEN 'ETH' THEN 4000000000000 ELSE 1000000000 END || '}}',
  needed, CASE WHEN EXISTS (SELECT 1 FROM transfer r WHERE r.id = 'topup:' || topup_then.id) THEN 'credited' ELSE state END,
  created_at, ends_at, changed_at FROM topup_then;

CREATE TABLE payment (                          -- what came, as its rail sees it; never deleted
  id            TEXT PRIMARY KEY,               -- "rail:identity": the identity is the rail's own, for ever the same
  rail          TEXT NOT NULL,
  asset         TEXT NOT NULL,
  address       TEXT NOT NULL,
  units         TEXT NOT NULL,                  -- of the asset's smallest unit
  account_id    INTEGER REFERENCES account (id), -- NULL: nobody knows whose it is
  topup_id      TEXT REFERENCES topup (id),
  tx            TEXT,
  block         TEXT,                           -- hash of the block that it is in
  height        INTEGER,
  confirmations INTEGER NOT NULL,               -- 0: in no block; below: it cannot come any more
  needed        INTEGER NOT NULL,
  state         TEXT NOT NULL CHECK (state IN ('seen', 'confirming', 'crediting', 'credited', 'reversing', 'gone', 'stray')),
  epoch         INTEGER NOT NULL DEFAULT 0,     -- odd: credited, even: not, or taken back; each change is an entry of its own
  final         INTEGER NOT NULL DEFAULT 0 CHECK (final IN (0, 1)), -- 1: its chain cannot take it back any more
  seen_at       INTEGER NOT NULL,
  changed_at    INTEGER NOT NULL,
  lost_at       INTEGER,                        -- when it left the chain after it was credited
  worth_nanos   INTEGER CHECK (worth_nanos >= 0), -- set once, as it is first credited
  locked_units  TEXT NOT NULL DEFAULT '0',      -- how much of it is worth what the quote says
  pricing       TEXT,                           -- JSON: the rates that its worth comes from
  taken_nanos   INTEGER CHECK (taken_nanos >= 0), -- what was taken from the customer as it was taken back; the rest is a loss
  transfer_id   TEXT                            -- the entry that has credited it last
) STRICT, WITHOUT ROWID;
CREATE INDEX payment_by_account ON payment (account_id, seen_at);
CREATE INDEX payment_by_topup ON payment (topup_id, epoch);
CREATE INDEX payment_due ON payment (seen_at, id) WHERE state IN ('confirming', 'crediting', 'reversing') OR lost_at IS NOT NULL;
CREATE INDEX payment_by_address ON payment (address);
CREATE INDEX payment_by_change ON payment (changed_at);
CREATE INDEX payment_open ON payment (rail, state) WHERE final = 0;
INSERT INTO payment
  (id, rail, asset, address, units, account_id, topup_id, confirmations, needed, state, epoch, final, seen_at,
   changed_at, worth_nanos, locked_units, pricing, transfer_id)
SELECT t.rail || ':' || t.id, t.rail, t.asset, t.address, t.paid_units, t.account_id, t.id, t.confirmations, t.needed,
  CASE WHEN t.state = 'credited' OR r.id IS NOT NULL THEN 'credited' ELSE t.state END,
  CASE WHEN t.state = 'credited' OR r.id IS NOT NULL THEN 1 ELSE 0 END,
  CASE WHEN t.state = 'credited' OR r.id IS NOT NULL THEN 1 ELSE 0 END, t.changed_at, t.changed_at,
  CASE WHEN t.state = 'credited' OR r.id IS NOT NULL THEN coalesce(r.amount_nanos, 0) END,
  CASE WHEN t.state = 'credited' OR r.id IS NOT NULL THEN t.paid_units ELSE '0' END,
  CASE WHEN t.state = 'credited' OR r.id IS NOT NULL THEN '{"quote":' || n.pricing || '}' END, r.id
FROM topup_then t JOIN topup n ON n.id = t.id LEFT JOIN transfer r ON r.id = 'topup:' || t.id
WHERE t.state IN ('seen', 'confirming', 'credited');
DROP TABLE topup_then;

CREATE TABLE watcher (                          -- how far each rail has looked, and how it is
  name      TEXT PRIMARY KEY,
  cursor    TEXT NOT NULL DEFAULT '',           -- where it goes on: its own words
  height    INTEGER,
  block     TEXT,
  tip_at    INTEGER,                            -- when the newest block was made
  looked_at INTEGER,                            -- when it last got through
  tried_at  INTEGER,
  error     TEXT                                -- why it did not, the last time
) STRICT, WITHOUT ROWID;

CREATE TABLE chain_block (                      -- the newest blocks of an EVM chain, as they were read
  id     TEXT PRIMARY KEY,                      -- "rail:height"
  rail   TEXT NOT NULL,
  height INTEGER NOT NULL,
  hash   TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX chain_block_by_rail ON chain_block (rail, height);

CREATE TABLE rate (                             -- what each source last said a coin is worth
  id        TEXT PRIMARY KEY,                   -- "source:asset"
  source    TEXT NOT NULL,
  asset     TEXT NOT NULL,
  bid_nanos INTEGER CHECK (bid_nanos > 0),      -- nano-dollars a coin; NULL: it has never answered
  at        INTEGER,                            -- of that price
  tried_at  INTEGER NOT NULL,
  error     TEXT
) STRICT, WITHOUT ROWID;

CREATE TABLE incident (                         -- what an operator has to look at
  id         INTEGER PRIMARY KEY,
  kind       TEXT NOT NULL,
  ref        TEXT NOT NULL,                     -- what it is about; one incident for each
  words      TEXT NOT NULL,
  account_id INTEGER REFERENCES account (id),
  opened_at  INTEGER NOT NULL,
  closed_at  INTEGER,
  closed_by  TEXT,
  closing    TEXT,                              -- what was done about it
  UNIQUE (kind, ref)
) STRICT;
CREATE INDEX incident_open ON incident (opened_at) WHERE closed_at IS NULL;

CREATE TABLE processor_event (                  -- webhooks of payment processors, each once
  id          TEXT PRIMARY KEY,                 -- "rail:delivery"
  rail        TEXT NOT NULL,
  ref         TEXT NOT NULL,                    -- the invoice it names
  received_at INTEGER NOT NULL,
  done_at     INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX processor_event_waiting ON processor_event (received_at) WHERE done_at IS NULL;

CREATE TABLE reconciliation (                   -- chain and books compared
  id         INTEGER PRIMARY KEY,
  rail       TEXT NOT NULL,
  asset      TEXT NOT NULL,
  at         INTEGER NOT NULL,
  looked_at  INTEGER NOT NULL,                  -- addresses or invoices that were looked at
  chain_units TEXT NOT NULL,
  books_units TEXT NOT NULL,
  differences INTEGER NOT NULL
) STRICT;
CREATE INDEX reconciliation_by_rail ON reconciliation (rail, asset, at);
