"""The reading side: tables and SQL views in ClickHouse, named queries, and the web application on top of them."""
