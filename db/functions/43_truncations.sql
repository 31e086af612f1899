-- Passages that were too long for their model.

create or replace function rag.truncations(document bigint default null)
    returns table (
        tenant text,
        model text,
        document_id bigint,
        uri text,
        chunk_id bigint,
        ordinal int,
        truncated_tokens int
    )
    language plpgsql
    stable
    parallel restricted
    security definer
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_place record;
begin
    -- Tenant by tenant, so that each statement opens and locks one partition.
    for v_place in
        select t.tenant_id, t.partition_id, t.name
        from rag.tenants as t
        where t.tenant_id = any(rag._overseen_tenants())
        order by t.name
    loop
        return query
        select
            v_place.name, m.name, d.document_id, d.uri, c.chunk_id, c.ordinal, e.truncated_tokens
        from rag.embeddings as e
        join rag.models as m on m.model_id = e.model_id and m.dropped_at is null
        join rag.chunks as c
            on c.partition_id = v_place.partition_id
            and c.tenant_id = v_place.tenant_id
            and c.chunk_id = e.chunk_id
        join rag.documents as d
            on d.tenant_id = v_place.tenant_id and d.document_id = c.document_id
        where
            e.partition_id = v_place.partition_id
            and e.tenant_id = v_place.tenant_id
            and e.truncated_tokens > 0
            and (truncations.document is null or c.document_id = truncations.document)
        order by m.name, d.document_id, c.ordinal;
    end loop;
end
$$;

comment on function rag.truncations(bigint) is
    'Passages of which a model did not take the end, and how many tokens of it: of a document, or '
    'of all; the caller''s tenant''s, or of all tenants for administrators.';
