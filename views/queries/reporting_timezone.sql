-- The reporting time zone; nothing before the migrations have written it.
SELECT value AS timezone FROM settings FINAL WHERE name = 'timezone';
