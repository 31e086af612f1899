-- Documents that say the same: by the hash of their text exactly, by their embeddings nearly.

create or replace function rag.duplicates(
    collection text default null,
    min_similarity real default 0.95,
    after bigint default 0,
    most int default 100
)
    returns table (
        document_id bigint,
        uri text,
        duplicate_of bigint,
        duplicate_of_uri text,
        kind text,
        similarity double precision,
        shared_chunks real
    )
    language plpgsql
    stable
    parallel restricted
    security definer
    rows 100
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_context record;
    v_collection int;
    v_model int;
begin
    perform rag._check_most(duplicates.most);
    if duplicates.min_similarity not between 0 and 1 then
        raise exception 'invalid min_similarity' using
            errcode = 'invalid_parameter_value',
            detail = format('min_similarity is %s.', duplicates.min_similarity),
            hint = 'It is a cosine, 0 to 1, such as 0.95; null: only equal texts.';
    end if;
    v_context := rag._context();
    if duplicates.collection is not null then
        v_collection := (
            rag._collection(v_context.tenant_id, duplicates.collection)
        ).collection_id;
    end if;
    v_model := (rag._active_model(v_context.tenant_id)).model_id;
    return query
    with
    documents as materialized (
        select d.document_id, d.uri, d.content_hash
        from rag.documents as d
        where
            d.tenant_id = v_context.tenant_id
            and (v_collection is null or d.collection_id = v_collection)
            and (d.expires_at is null or d.expires_at > statement_timestamp())
    ),
    page as materialized (
        select d.*
        from documents as d
        where d.document_id > coalesce(duplicates.after, 0)
        order by d.document_id
        limit duplicates.most
    ),
    firsts as materialized (
        select d.content_hash, min(d.document_id) as document_id
        from documents as d
        group by d.content_hash
    ),
    means as materialized (
        select c.document_id, l2_normalize(avg(e.embedding)) as mean
        from rag.chunks as c
        join rag.embeddings as e
            on e.model_id = v_model
            and e.partition_id = v_context.partition_id
            and e.tenant_id = v_context.tenant_id
            and e.chunk_id = c.chunk_id
        where
            duplicates.min_similarity is not null
            and c.partition_id = v_context.partition_id
            and c.tenant_id = v_context.tenant_id
            and (v_collection is null or c.collection_id = v_collection)
        group by c.document_id
    ),
    near as (
        select p.document_id, o.document_id as other, 1 - (m.mean <=> o.mean) as similarity
        from page as p
        join firsts as f
            on f.content_hash = p.content_hash and f.document_id = p.document_id
        join means as m on m.document_id = p.document_id
        join means as o on o.document_id < p.document_id
        where 1 - (m.mean <=> o.mean) >= duplicates.min_similarity
    ),
    pairs as (
        select p.document_id, f.document_id as other, 'exact' as kind, 1.0::float8 as similarity
        from page as p
        join firsts as f
            on f.content_hash = p.content_hash and f.document_id < p.document_id
        union all
        select n.document_id, n.other, 'near', n.similarity
        from near as n
    )
    select
        a.document_id, a.uri, b.document_id, b.uri, x.kind, x.similarity,
        (
            select avg(exists (
                select
                from rag.chunks as o
                where
                    o.partition_id = v_context.partition_id
                    and o.tenant_id = v_context.tenant_id
                    and o.document_id = x.other
                    and o.content_hash = c.content_hash
            )::int)::real
            from rag.chunks as c
            where
                c.partition_id = v_context.partition_id
                and c.tenant_id = v_context.tenant_id
                and c.document_id = x.document_id
        )
    from pairs as x
    join documents as a on a.document_id = x.document_id
    join documents as b on b.document_id = x.other
    order by x.document_id, x.similarity desc, x.other;
end
$$;

comment on function rag.duplicates(text, real, bigint, int) is
    'Which documents say what an older one says: exact (the same text) or near (the mean of their '
    'chunks'' embeddings is so similar). Goes through most documents in the order of their ids, '
    'from after on, and compares each with all older ones.';
