-- How long a tenant keeps the records of work that is done: read files and finished runs.
--
-- A constant default: no row is written, the lock on rag.tenants lasts a moment. The indexes are of
-- small tables.

alter table rag.tenants add column keep_records interval default interval '90 days'
constraint tenant_keeps_records_for_a_time check (keep_records > interval '0');

comment on column rag.tenants.keep_records is
    'How long rag.uploads and rag.runs tell of what is finished; null: for ever.';

create index uploads_finished_idx on rag.uploads (tenant_id, finished_at)
where state in ('completed', 'replaced');
create index runs_finished_idx on rag.runs (tenant_id, finished_at)
where finished_at is not null;
