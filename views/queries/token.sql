-- One token, if it was not revoked.
SELECT name, secret_sha256, admin, customers
FROM tokens FINAL
WHERE id = {id:String} AND revoked_at IS NULL;
