-- Fusion: what the places and scores in two ranked lists are worth together.

create or replace function rag._contribution(
    fusion text,
    place bigint,
    standard double precision,
    score double precision,
    least_score double precision,
    greatest_score double precision
)
    returns double precision
    language sql
    immutable
    parallel safe
    security invoker
return case fusion
    -- Reciprocal rank fusion with k = 60 (Cormack, Clarke and Büttcher 2009), times 61, so that
    -- 1 means: first in every leg.
    when 'rrf' then 61.0 / (60 + place)
    -- Each list from 0 (its last) to 1 (its first).
    when 'linear' then coalesce(
        (score - least_score) / nullif(greatest_score - least_score, 0), 1
    )
    -- In standard deviations of the tenant's own chunks for this query, from a chunk without any of
    -- the words and from one of average meaning: a leg that tells chunks apart speaks up, one that
    -- finds all of them alike keeps quiet. What a leg has not listed gets 0.
    else standard
end;

comment on function rag._contribution(
    text, bigint, double precision, double precision, double precision, double precision
) is 'What its place and score in one leg add to a chunk''s score, before the leg''s weight.';

create or replace function rag._support_weight()
    returns double precision
    language sql
    immutable
    parallel safe
    security invoker
return 0.5;

comment on function rag._support_weight() is
    'What likeness to the best passage counts, against likeness to the query. Twice that finds '
    'still more where many passages answer, and costs where one does; a quarter gains little.';

create or replace function rag._support(
    tenant_id int, partition_id int, model_id int, best bigint, chunks bigint[]
)
    returns table (chunk_id bigint, similarity double precision)
    language plpgsql
    stable
    parallel restricted
    security invoker
    rows 100
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
begin
    if _support.best is null then
        return;
    end if;
    return query execute format(
        'select e.chunk_id, 1 - (e.embedding <=> b.embedding) '
        'from rag_data.embeddings_m%1$s_p%2$s as b '
        'join rag_data.embeddings_m%1$s_p%2$s as e '
        'on e.tenant_id = $1 and e.chunk_id = any($3) '
        'where b.tenant_id = $1 and b.chunk_id = $2',
        _support.model_id, _support.partition_id
    )
    using _support.tenant_id, _support.best, _support.chunks;
end
$$;

comment on function rag._support(int, int, int, bigint, bigint[]) is
    'How near each of these chunks is in meaning to the best by both legs, if there is one: what '
    'is like a good answer is likelier to be one (Jardine and van Rijsbergen 1971). The best stays '
    'the best, what resembles it comes up behind it.';

create or replace function rag._fuse(
    tenant_id int,
    partition_id int,
    model_id int,
    lexical_chunks bigint[],
    lexical_scores double precision[],
    lexical_standards double precision[],
    semantic_chunks bigint[],
    similarities double precision[],
    semantic_standards double precision[],
    fusion text,
    lexical_weight double precision,
    out chunk_ids bigint[],
    out scores double precision[],
    out lexical_ranks int[],
    out lexical_matches double precision[],
    out semantic_ranks int[],
    out semantic_matches double precision[],
    out supports double precision[]
)
    returns record
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- It plans nothing that reads a partition.
    set plan_cache_mode = auto
    set jit = off
as $$
#variable_conflict use_column
declare
    v_is_supported boolean := _fuse.fusion = 'standard'
        and _fuse.lexical_chunks is not null
        and _fuse.semantic_chunks is not null;
begin
    with
    legs as (
        select
            l.chunk_id,
            _fuse.lexical_weight * rag._contribution(
                _fuse.fusion, l.place, l.standard, l.score,
                min(l.score) over (), max(l.score) over ()
            ) as score,
            _fuse.lexical_weight * l.standard as standard,
            l.place as lexical_place,
            l.score as lexical_score,
            null::bigint as semantic_place,
            null::double precision as similarity
        from unnest(_fuse.lexical_chunks, _fuse.lexical_scores, _fuse.lexical_standards)
            with ordinality as l (chunk_id, score, standard, place)
        union all
        select
            s.chunk_id,
            (1 - _fuse.lexical_weight) * rag._contribution(
                _fuse.fusion, s.place, s.standard, s.similarity,
                min(s.similarity) over (), max(s.similarity) over ()
            ),
            (1 - _fuse.lexical_weight) * s.standard,
            null,
            null,
            s.place,
            s.similarity
        from unnest(_fuse.semantic_chunks, _fuse.similarities, _fuse.semantic_standards)
            with ordinality as s (chunk_id, similarity, standard, place)
    ),
    fused as materialized (
        select
            g.chunk_id,
            sum(g.score) as score,
            sum(g.standard) as standard,
            max(g.lexical_place)::int as lexical_rank,
            max(g.lexical_score) as lexical_score,
            max(g.semantic_place)::int as semantic_rank,
            max(g.similarity) as similarity
        from legs as g
        group by g.chunk_id
    ),
    -- From a cosine to deviations, as the semantic leg has it.
    scale as materialized (
        select
            regr_slope(s.standard, s.similarity) as slope,
            regr_intercept(s.standard, s.similarity) as intercept
        from unnest(_fuse.similarities, _fuse.semantic_standards) as s (similarity, standard)
    ),
    supported as (
        select
            p.chunk_id,
            (1 - _fuse.lexical_weight) * rag._support_weight()
            * (p.similarity * c.slope + c.intercept) as support
        from rag._support(
            _fuse.tenant_id, _fuse.partition_id, _fuse.model_id,
            (
                select f.chunk_id
                from fused as f
                where v_is_supported
                order by f.standard desc, f.chunk_id
                limit 1
            ),
            array(select f.chunk_id from fused as f)
        ) as p
        cross join scale as c
    ),
    ordered as (
        select
            f.chunk_id,
            f.score + coalesce(u.support, 0) as score,
            f.lexical_rank,
            f.lexical_score,
            f.semantic_rank,
            f.similarity,
            coalesce(u.support, 0) as support,
            -- Ranks tie often: 1st and 3rd, 3rd and 1st.
            row_number() over (
                order by
                    f.score + coalesce(u.support, 0) desc, f.standard desc,
                    f.similarity desc nulls last, f.chunk_id
            ) as place
        from fused as f
        left join supported as u on u.chunk_id = f.chunk_id
    )
    select
        array_agg(o.chunk_id order by o.place),
        array_agg(o.score order by o.place),
        array_agg(o.lexical_rank order by o.place),
        array_agg(o.lexical_score order by o.place),
        array_agg(o.semantic_rank order by o.place),
        array_agg(o.similarity order by o.place),
        array_agg(o.support order by o.place)
    into
        chunk_ids, scores, lexical_ranks, lexical_matches, semantic_ranks, semantic_matches,
        supports
    from ordered as o;
end
$$;

comment on function rag._fuse(
    int, int, int, bigint[], double precision[], double precision[], bigint[], double precision[],
    double precision[], text, double precision
) is 'One list of two, best first.';
