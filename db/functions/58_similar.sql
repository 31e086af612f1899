-- What is like this: similarities of vectors and of passages.

create or replace function rag.cosine_similarity(a vector, b vector)
    returns double precision
    language sql
    immutable
    parallel safe
    security invoker
    -- A zero vector has no direction, and NaN would be the first in descending order.
    return nullif(1 - (a <=> b), 'NaN'::double precision);

comment on function rag.cosine_similarity(vector, vector) is
    'The cosine of the angle between two vectors: 1 for the same direction, null where '
    'one is a zero vector, which has none.';

create or replace function rag.find_similar(
    chunk_id bigint, k int default 10, collection text default null
)
    -- A type, because a parameter and a column of a table that is returned cannot share a name.
    returns setof rag.similar_passage
    language plpgsql
    stable
    parallel restricted
    security invoker
    rows 10
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_tenant int;
    v_partition int;
    v_model text;
    v_vector vector;
begin
    -- 1,000 passages are what a search gives, and the chunk itself is one of them.
    if find_similar.k is null or find_similar.k not between 1 and 999 then
        raise exception 'invalid k' using
            errcode = 'invalid_parameter_value',
            detail = format('k is %s.', coalesce(find_similar.k::text, 'null')),
            hint = 'k is the number of passages wanted, 1 to 999.';
    end if;
    select c.tenant_id, c.partition_id into v_tenant, v_partition from rag._context() as c;
    select m.name into v_model from rag.active_model() as m;
    -- Row-level security holds here as everywhere: another tenant's chunk is not there.
    select e.embedding::vector into v_vector
    from rag.embeddings as e
    where
        e.partition_id = v_partition
        and e.tenant_id = v_tenant
        and e.chunk_id = find_similar.chunk_id
        and e.model_id = (select m.model_id from rag.models as m where m.name = v_model);
    if v_vector is null then
        raise exception 'chunk % has no embedding',
            coalesce(find_similar.chunk_id::text, 'null') using
            errcode = 'no_data_found',
            detail = format('The tenant has no chunk of that id that model %s has embedded.',
                coalesce(v_model, 'none')),
            hint = 'chunk_id is that of a result of rag.search; rag.wait_for waits until a '
            'document is embedded.';
    end if;
    -- One more, because the chunk itself is the nearest; of its twins some may come before it.
    return query
    select
        (row_number() over (order by p.similarity desc, p.chunk_id))::int,
        p.chunk_id, p.document_id, p.uri, p.title, p.content, p.metadata, p.similarity,
        p.collection_name
    from rag._passages(
        '', find_similar.k + 1, find_similar.collection, null, v_vector, 'semantic', null, null,
        'linear', null, 0, null, null
    ) as p
    where p.chunk_id <> find_similar.chunk_id
    order by p.similarity desc, p.chunk_id
    limit find_similar.k;
end
$$;

comment on function rag.find_similar(bigint, int, text) is
    'The k passages (1 to 999) of the caller''s tenant that are nearest in meaning to one of them, '
    'best first, without itself.';
