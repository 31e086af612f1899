-- A move tells when it is about to switch, and past versions count among a tenant's bytes. Locks
-- rag.moves for a moment, and writers of past versions while their bytes are counted.

alter table rag.moves
drop constraint move_stage_is_known,
add constraint move_stage_is_known
check (stage in ('copying', 'indexing', 'catching up', 'switching'));

lock table rag.past_documents in share mode;
insert into rag.usage_deltas (tenant_id, documents, chunks, bytes)
select p.tenant_id, 0, 0, sum(octet_length(p.content))
from rag.past_documents as p
group by p.tenant_id;

comment on column rag.tenants.max_bytes is
    'Of documents.content and of past versions, in UTF-8.';
comment on column rag.tenant_usage.bytes is
    'Of documents.content and of past versions, in UTF-8.';

-- Numbers of sessions, for the seals of tokens that hold for a session.
create sequence rag.session_ids;
