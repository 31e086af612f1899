-- Keys of signed tokens, quotas, usage, suspension, and what rag.audit() compares with.
--
-- Locks rag.documents against writers while it counts what each tenant has: a second for a million
-- chunks.

create table rag.token_keys (
    key_id int generated always as identity primary key,
    name text not null unique,
    audience text not null,
    tenants int[],
    max_lifetime interval not null,
    inner_block bytea not null,
    outer_block bytea not null,
    seal bytea not null,
    created_at timestamptz not null default now(),
    constraint token_key_name_is_short check (length(name) between 1 and 200),
    constraint token_key_audience_is_short check (length(audience) between 1 and 200),
    constraint token_key_blocks_are_blocks
    check (octet_length(inner_block) = 64 and octet_length(outer_block) = 64)
);

comment on table rag.token_keys is
    'What signed tokens are verified with: read by rag.authenticate and the context, and by nobody '
    'else.';
comment on column rag.token_keys.name is 'The kid of a token''s header.';
comment on column rag.token_keys.audience is 'What the aud of a token has to name.';
comment on column rag.token_keys.tenants is 'The only ones its tokens may name; null: any.';
comment on column rag.token_keys.inner_block is 'HMAC: the secret, padded, xor 0x36.';
comment on column rag.token_keys.outer_block is 'HMAC: the secret, padded, xor 0x5c.';
comment on column rag.token_keys.seal is
    'Random: what a verified token leaves in the setting rag.authenticated is sealed with it.';

alter table rag.tenants
add column max_documents bigint,
add column max_chunks bigint,
add column max_bytes bigint,
add column puts_per_minute int,
add column searches_per_minute int,
add column is_suspended boolean not null default false,
add column suspended_because text;

comment on column rag.tenants.max_documents is 'Quotas; null: any number (rag.set_quota).';
comment on column rag.tenants.max_bytes is 'Of documents.content in UTF-8.';
comment on column rag.tenants.is_suspended is
    'Its searches and puts are refused and nothing is embedded, until rag.resume_tenant.';

drop index rag.tenants_paused_idx;
create index tenants_paused_idx on rag.tenants (tenant_id)
where is_paused or is_suspended or paused_models <> '{}';

-- As with the statistics of BM25 writers append what changed, because all of a tenant's puts would
-- queue up on one row; one of 32 takes in what is there.
create table rag.tenant_usage (
    tenant_id int primary key,
    documents bigint not null default 0,
    chunks bigint not null default 0,
    bytes bigint not null default 0
);

comment on table rag.tenant_usage is 'What each tenant has, but for rag.usage_deltas.';
comment on column rag.tenant_usage.bytes is 'Of documents.content in UTF-8.';

create table rag.usage_deltas (
    tenant_id int not null,
    delta_id bigint generated always as identity,
    documents bigint not null,
    chunks bigint not null,
    bytes bigint not null,
    primary key (tenant_id, delta_id)
);

comment on table rag.usage_deltas is 'Changes of what a tenant has that are not taken in yet.';

lock table rag.documents in share mode;
insert into rag.tenant_usage (tenant_id, documents, chunks, bytes)
select t.tenant_id, coalesce(d.documents, 0), coalesce(c.chunks, 0), coalesce(d.bytes, 0)
from rag.tenants as t
left join (
    select o.tenant_id, count(*) as documents, sum(octet_length(o.content)) as bytes
    from rag.documents as o
    group by o.tenant_id
) as d on d.tenant_id = t.tenant_id
left join (
    select h.tenant_id, count(*) as chunks
    from rag.chunks as h
    group by h.tenant_id
) as c on c.tenant_id = t.tenant_id;

-- The allow-list of rag.audit(): every migration writes it anew, last of all.
create table rag.baseline (
    kind text not null,
    name text not null,
    fingerprint text not null,
    primary key (kind, name)
);

comment on table rag.baseline is
    'Functions and rights as the last migration left them; rag.audit() tells what has changed.';
