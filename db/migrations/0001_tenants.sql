-- Who owns data, who may act for whom, and which partition holds it.

create table rag.partitions (
    partition_id int generated always as identity primary key,
    kind text not null default 'shared',
    created_at timestamptz not null default now(),
    constraint partition_kind_is_known check (kind in ('shared', 'dedicated'))
);

comment on table rag.partitions is
    'Where chunks, lexemes and embeddings lie: shared partitions hold many small tenants each.';

create table rag.tenants (
    tenant_id int generated always as identity primary key,
    name text not null unique,
    partition_id int not null references rag.partitions (partition_id),
    created_at timestamptz not null default now(),
    constraint tenant_name_is_short check (length(name) between 1 and 200),
    constraint tenant_name_is_trimmed check (name = btrim(name))
);

create index tenants_partition_id_idx on rag.tenants (partition_id);

comment on table rag.tenants is 'The owners of data; isolation is between tenants.';

-- A grant names a role by oid (regrole), so a dropped role's namesake inherits nothing.
create table rag.tenant_grants (
    role regrole not null,
    tenant_id int references rag.tenants (tenant_id) on delete cascade,
    created_at timestamptz not null default now(),
    constraint tenant_grants_are_unique unique nulls not distinct (role, tenant_id)
);

create index tenant_grants_tenant_id_idx on rag.tenant_grants (tenant_id);

comment on table rag.tenant_grants is 'Which role may act as which tenant.';
comment on column rag.tenant_grants.tenant_id is 'Null: every tenant (a trusted service).';
