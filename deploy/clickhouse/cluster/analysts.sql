-- The form of ../analysts.sql for a cluster: the rows of customers are in `seatmark_shard`, so the policies are there. A test holds the two
-- against each other.
--
-- People with SQL clients: they read the views and tables below, and of these only the rows of the customers that they were given.
-- Run it as a user that may manage access, after `seatmark migrate`, and again after every upgrade. Then, for each analyst:
--
--     CREATE USER ann IDENTIFIED WITH sha256_password BY '...';
--     GRANT seatmark_analyst TO ann;
--     CREATE ROLE IF NOT EXISTS `customer:acme`, `customer:globex`;
--     GRANT `customer:acme`, `customer:globex` TO ann;
--
-- The role's name is `customer:` and the customer's id, as events and terms spell it. REVOKE takes a customer away again, at once.

CREATE ROLE IF NOT EXISTS seatmark_analyst;

CREATE SETTINGS PROFILE OR REPLACE seatmark_analyst SETTINGS
    -- Queries only. Their settings may be changed, but for these.
    readonly = 2,
    -- Tables are read as if with FINAL: a row that was replaced is not seen, and neither is the customer that it named.
    final = true CONST,
    apply_row_policy_after_final = true CONST,
    -- Without the minimum, 0 would be no limit at all.
    max_execution_time = 60 MIN 1 MAX 300,
    max_memory_usage = 2000000000 MIN 1000000 MAX 2000000000,
    max_concurrent_queries_for_user = 4 CONST,
    -- What a query looks up in a subquery is on the shard of the rows that it is for; and no answer is better than one without a
    -- shard's part.
    distributed_product_mode = 'local' CONST,
    skip_unavailable_shards = false CONST
    TO seatmark_analyst;

-- For each analyst. Time of execution in seconds.
CREATE QUOTA OR REPLACE seatmark_analyst KEYED BY user_name
    FOR INTERVAL 1 hour MAX queries = 2000, execution_time = 1800
    TO seatmark_analyst;

-- What is not named here cannot be read: `tokens` above all, and what Seatmark keeps for itself.
GRANT SELECT ON seatmark.usage TO seatmark_analyst;
GRANT SELECT ON seatmark.usage_by_day TO seatmark_analyst;
GRANT SELECT ON seatmark.live_levels TO seatmark_analyst;
GRANT SELECT ON seatmark.overdrawn_now TO seatmark_analyst;
GRANT SELECT ON seatmark.activity_history TO seatmark_analyst;
-- The views run with the reader's own rights, so what they read must be granted, too. Of most use by themselves: alerts, terms.
GRANT SELECT ON seatmark.activity TO seatmark_analyst;
GRANT SELECT ON seatmark_shard.activity TO seatmark_analyst;
GRANT SELECT ON seatmark.terms TO seatmark_analyst;
GRANT SELECT ON seatmark_shard.terms TO seatmark_analyst;
GRANT SELECT ON seatmark.days TO seatmark_analyst;
GRANT SELECT ON seatmark_shard.days TO seatmark_analyst;
GRANT SELECT ON seatmark.marks TO seatmark_analyst;
GRANT SELECT ON seatmark_shard.marks TO seatmark_analyst;
GRANT SELECT ON seatmark.elements TO seatmark_analyst;
GRANT SELECT ON seatmark_shard.elements TO seatmark_analyst;
GRANT SELECT ON seatmark.alerts TO seatmark_analyst;
GRANT SELECT ON seatmark_shard.alerts TO seatmark_analyst;
GRANT SELECT ON seatmark.calendar TO seatmark_analyst;

-- An element belongs to the customer that it names now, with its whole past (docs/api.md, 'Who may see what'); one that names none is
-- for nobody here. Policies are for everybody but Seatmark's own users and the administrator: whoever else is allowed to read a
-- table sees nothing of a customer that he was not given.
CREATE ROW POLICY OR REPLACE seatmark_customers ON seatmark_shard.elements
    USING has(enabledRoles(), concat('customer:', customer))
    TO ALL EXCEPT default, seatmark_writer, seatmark_reader;

CREATE ROW POLICY OR REPLACE seatmark_customers
    ON seatmark_shard.activity, seatmark_shard.terms, seatmark_shard.days, seatmark_shard.marks, seatmark_shard.alerts, seatmark_shard.settled, seatmark_shard.restatements,
       seatmark_shard.exact_states, seatmark_shard.levels_held
    USING (entitlement, element) IN
    (
        SELECT entitlement, element FROM seatmark_shard.elements FINAL WHERE has(enabledRoles(), concat('customer:', customer))
    )
    TO ALL EXCEPT default, seatmark_writer, seatmark_reader;
