-- Books that grow: sums by the hour, and calls that may go once their sums stand for them.

CREATE TABLE hour_close (                       -- hours, since 1970 UTC, that get no more calls; each row closes all up to it
  hour      INTEGER PRIMARY KEY,
  closed_at INTEGER NOT NULL
) STRICT;

-- Sums over the usage of closed hours, which never change. Written as an hour is closed; days are summed from them.
CREATE TABLE usage_hour (
  id            INTEGER PRIMARY KEY,
  account_id    INTEGER NOT NULL REFERENCES account (id),
  hour          INTEGER NOT NULL,
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
  UNIQUE (account_id, hour, key_id, model, outcome)
) STRICT;
CREATE INDEX usage_hour_by_hour ON usage_hour (hour);

CREATE TABLE house_hour (                         -- the same of all accounts together: what the business did
  id            INTEGER PRIMARY KEY,
  hour          INTEGER NOT NULL,
  model         TEXT NOT NULL,
  outcome       TEXT NOT NULL,
  requests      INTEGER NOT NULL,
  tokens        INTEGER NOT NULL,
  charged_nanos INTEGER NOT NULL,
  list_nanos    INTEGER NOT NULL,
  waived_nanos  INTEGER NOT NULL,
  shortfall_nanos INTEGER NOT NULL,
  last_at       INTEGER NOT NULL,
  UNIQUE (hour, model, outcome)
) STRICT;
CREATE TABLE house_day (
  id            INTEGER PRIMARY KEY,
  day           INTEGER NOT NULL,
  model         TEXT NOT NULL,
  outcome       TEXT NOT NULL,
  requests      INTEGER NOT NULL,
  tokens        INTEGER NOT NULL,
  charged_nanos INTEGER NOT NULL,
  list_nanos    INTEGER NOT NULL,
  waived_nanos  INTEGER NOT NULL,
  shortfall_nanos INTEGER NOT NULL,
  last_at       INTEGER NOT NULL,
  UNIQUE (day, model, outcome)
) STRICT;

CREATE TABLE session_hour (                     -- the same by Claude Code session and agent; gone once its day is summed
  id            INTEGER PRIMARY KEY,
  account_id    INTEGER NOT NULL REFERENCES account (id),
  hour          INTEGER NOT NULL,
  session       TEXT NOT NULL,
  agent         TEXT NOT NULL,
  parent_agent  TEXT NOT NULL,
  requests      INTEGER NOT NULL,
  tokens        INTEGER NOT NULL,
  charged_nanos INTEGER NOT NULL,
  first_at      INTEGER NOT NULL,
  last_at       INTEGER NOT NULL,
  UNIQUE (account_id, hour, session, agent, parent_agent)
) STRICT;
CREATE INDEX session_hour_by_hour ON session_hour (hour);
CREATE INDEX session_hour_by_session ON session_hour (account_id, session);

INSERT INTO usage_hour
  (account_id, hour, key_id, model, outcome, requests, tokens, charged_nanos, list_nanos, waived_nanos,
   shortfall_nanos, last_at)
SELECT account_id, at / 3600000000, key_id, model, outcome, count(*),
  sum(input_tokens + cache_write_5m_tokens + cache_write_1h_tokens + cache_read_tokens + output_tokens),
  sum(charged_nanos), sum(list_nanos), sum(waived_nanos), sum(shortfall_nanos), max(at)
FROM usage WHERE at < (SELECT unixepoch(max(day)) * 1000000 + 86400000000 FROM day_close)
GROUP BY account_id, at / 3600000000, key_id, model, outcome;
INSERT INTO house_hour (hour, model, outcome, requests, tokens, charged_nanos, list_nanos, waived_nanos, shortfall_nanos, last_at)
SELECT hour, model, outcome, sum(requests), sum(tokens), sum(charged_nanos), sum(list_nanos), sum(waived_nanos),
  sum(shortfall_nanos), max(last_at)
FROM usage_hour GROUP BY hour, model, outcome;
INSERT INTO house_day (day, model, outcome, requests, tokens, charged_nanos, list_nanos, waived_nanos, shortfall_nanos, last_at)
SELECT day, model, outcome, sum(requests), sum(tokens), sum(charged_nanos), sum(list_nanos), sum(waived_nanos),
  sum(shortfall_nanos), max(last_at)
FROM usage_day GROUP BY day, model, outcome;
INSERT INTO hour_close (hour, closed_at) SELECT unixepoch(max(day)) / 3600 + 23, max(closed_at) FROM day_close HAVING max(day) IS NOT NULL;

CREATE TABLE day_drop (                         -- days whose calls were let go: what was proved of them, chained as days are
  day             TEXT PRIMARY KEY,
  usage_rows      INTEGER NOT NULL,
  previous_sha256 TEXT NOT NULL,
  sha256          TEXT NOT NULL,                -- over the day's own digest, its sums and its transfers
  dropped_at      INTEGER NOT NULL
) STRICT;
CREATE TRIGGER day_drop_is_of_a_closed_day BEFORE INSERT ON day_drop WHEN NOT EXISTS (SELECT 1 FROM day_close WHERE day = NEW.day) BEGIN SELECT RAISE(ABORT, 'only the calls of a closed day can go'); END;
CREATE TRIGGER day_drop_is_not_updated BEFORE UPDATE ON day_drop BEGIN SELECT RAISE(ABORT, 'a dropped day stays dropped'); END;
CREATE TRIGGER day_drop_is_not_deleted BEFORE DELETE ON day_drop BEGIN SELECT RAISE(ABORT, 'a dropped day stays dropped'); END;

DROP TRIGGER usage_is_not_deleted;
CREATE TRIGGER usage_is_not_deleted BEFORE DELETE ON usage WHEN NOT EXISTS (SELECT 1 FROM day_drop WHERE day = strftime('%Y-%m-%d', OLD.at / 1000000, 'unixepoch')) BEGIN SELECT RAISE(ABORT, 'usage rows are never deleted'); END;
