"""Who calls: workload identities from certificates, people and backends from tokens, and the local dev CA."""
