"""The reading side: tables and SQL views in ClickHouse, named queries, and the web application that answers from them."""
