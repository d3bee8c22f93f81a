-- Who may read what.

-- The tokens that the web accepts. Of the secret only a hash is kept; it is long and random, so a plain SHA-256 is enough.
-- customers: those whose entitlements it may see. admin: it may see all, and `customers` is empty.
-- A token is never deleted: its last row says when it was revoked.
CREATE TABLE IF NOT EXISTS tokens
(
    id String,
    name String,
    secret_sha256 String,
    admin Bool,
    customers Array(String),
    made_at DateTime64(3, 'UTC'),
    revoked_at Nullable(DateTime64(3, 'UTC')),
    written_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = ReplacingMergeTree(written_at)
ORDER BY id
SETTINGS non_replicated_deduplication_window = 10000;

-- The elements that a reader may see. Every query of the web that reads an entitlement's data reads it through this view, so this is
-- the one place that decides. everyone: all of them; else those whose customer is one of `customers`. An element belongs to
-- the customer that it names now; one that names none is for readers of everything only.
CREATE VIEW IF NOT EXISTS visible_elements AS
SELECT
    entitlement,
    element,
    customer,
    product,
    name,
    kind,
    level,
    `limit`,
    hard_limit,
    terms_known,
    state,
    entered_at,
    peak,
    day,
    as_of,
    position
FROM elements FINAL
WHERE {everyone:Bool} OR has({customers:Array(String)}, assumeNotNull(customer)) AND isNotNull(customer);
