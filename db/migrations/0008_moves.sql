-- Moves of tenants between partitions, and indexes on the vectors of big ones.

alter table rag.tenants
add column hnsw_models int[] not null default '{}';

comment on column rag.tenants.hnsw_models is
    'Models whose vectors of this tenant have an HNSW index (he has a partition of his own).';

alter table rag.partitions
add column empty_since timestamptz;

comment on column rag.partitions.empty_since is
    'Since when nobody is known to be in a dedicated partition.';

create table rag.moves (
    tenant_id int primary key references rag.tenants (tenant_id) on delete cascade,
    partition_id int not null,
    stage text not null default 'copying',
    passes int not null default 0,
    rows bigint not null default 0,
    started_at timestamptz not null default clock_timestamp(),
    constraint move_stage_is_known check (stage in ('copying', 'indexing', 'catching up'))
);

comment on table rag.moves is 'Tenants on their way to a partition of their own.';
comment on column rag.moves.partition_id is
    'Where he goes; not in rag.partitions before he is there.';
comment on column rag.moves.passes is 'How often what had changed meanwhile was copied again.';
comment on column rag.moves.rows is 'Rows copied so far: chunks, lexemes and embeddings.';
