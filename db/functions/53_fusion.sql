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

-- Reciprocal ranks tell 30 places of a leg apart. Where what is not listed gets nothing, the last
-- of a list is still worth much, half of the first if it is the 60th: a leg that is poor on a
-- corpus puts up what it alone has. nDCG@10 by 20, 30 and 50 places, and by lists of 100 with
-- nothing behind them:
--     cranfield 0.398, 0.402, 0.400, 0.400        scifact 0.723, 0.720, 0.723, 0.718
--     squad-dev 0.834, 0.831, 0.832, 0.832        xquad-es 0.886, 0.870, 0.856, 0.843
-- Few places are best where one passage answers, more where many do, as in cranfield; where every
-- passage of the right article counts, 30 get 0.773 and lists of 100 get 0.781. On the other 2,765
-- questions of squad-dev and xquad-es 30 get 0.891 and 0.862, lists of 100 get 0.888 and 0.838.
create or replace function rag._last_place(fusion text, lexical_chunks int, semantic_chunks int)
    returns bigint
    language sql
    immutable
    parallel safe
    security invoker
return case when fusion = 'rrf' and lexical_chunks > 0 and semantic_chunks > 0 then 31 end;

comment on function rag._last_place(text, int, int) is
    'The place at which all counts that one of two legs, which list so many chunks, has further '
    'down or not at all; null where each counts by its own, and what is not listed for nothing.';

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
    -- The best in a query of its own: to plan a join took half as long again.
    return query execute format(
        'select e.chunk_id, 1 - (e.embedding <=> ('
        'select b.embedding from rag_data.embeddings_m%1$s_p%2$s as b '
        'where b.tenant_id = $1 and b.chunk_id = $2)) '
        'from rag_data.embeddings_m%1$s_p%2$s as e '
        'where e.tenant_id = $1 and e.chunk_id = any($3)',
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
    v_best bigint;
    v_supported bigint[];
    v_slope double precision;
    v_intercept double precision;
    v_supports double precision[];
    v_last bigint := rag._last_place(
        _fuse.fusion, cardinality(_fuse.lexical_chunks), cardinality(_fuse.semantic_chunks)
    );
    v_unlisted double precision := case
        when v_last is null then 0
        else rag._contribution(_fuse.fusion, v_last, null, null, null, null)
    end;
begin
    if v_is_supported then
        v_best := (
            select coalesce(l.chunk_id, s.chunk_id)
            from unnest(_fuse.lexical_chunks, _fuse.lexical_standards) as l (chunk_id, standard)
            full join unnest(_fuse.semantic_chunks, _fuse.semantic_standards)
                as s (chunk_id, standard) on s.chunk_id = l.chunk_id
            order by
                coalesce(_fuse.lexical_weight * l.standard, 0)
                + coalesce((1 - _fuse.lexical_weight) * s.standard, 0) desc,
                coalesce(l.chunk_id, s.chunk_id)
            limit 1
        );
        -- From a cosine to deviations, as the semantic leg has it.
        select regr_slope(s.standard, s.similarity), regr_intercept(s.standard, s.similarity)
        into v_slope, v_intercept
        from unnest(_fuse.similarities, _fuse.semantic_standards) as s (similarity, standard);
        select
            array_agg(p.chunk_id),
            array_agg(
                (1 - _fuse.lexical_weight) * rag._support_weight()
                * (p.similarity * v_slope + v_intercept)
            )
        into v_supported, v_supports
        from rag._support(
            _fuse.tenant_id, _fuse.partition_id, _fuse.model_id, v_best,
            _fuse.lexical_chunks || _fuse.semantic_chunks
        ) as p;
    end if;
    -- Lists come best first. Ranks tie often: 1st and 3rd, 3rd and 1st.
    select
        array_agg(o.chunk_id),
        array_agg(o.score),
        array_agg(o.lexical_rank),
        array_agg(o.lexical_score),
        array_agg(o.semantic_rank),
        array_agg(o.similarity),
        array_agg(o.support)
    into
        chunk_ids, scores, lexical_ranks, lexical_matches, semantic_ranks, semantic_matches,
        supports
    from (
        select
            f.chunk_id, f.lexical_rank, f.lexical_score, f.semantic_rank, f.similarity,
            f.score + coalesce(u.support, 0) as score,
            coalesce(u.support, 0) as support
        from (
            select
                coalesce(l.chunk_id, s.chunk_id) as chunk_id,
                case
                    when l.chunk_id is null then _fuse.lexical_weight * v_unlisted
                    else _fuse.lexical_weight * rag._contribution(
                        _fuse.fusion, least(l.place, v_last), l.standard, l.score,
                        _fuse.lexical_scores[cardinality(_fuse.lexical_scores)],
                        _fuse.lexical_scores[1]
                    )
                end
                + case
                    when s.chunk_id is null then (1 - _fuse.lexical_weight) * v_unlisted
                    else (1 - _fuse.lexical_weight) * rag._contribution(
                        _fuse.fusion, least(s.place, v_last), s.standard, s.similarity,
                        _fuse.similarities[cardinality(_fuse.similarities)],
                        _fuse.similarities[1]
                    )
                end as score,
                coalesce(_fuse.lexical_weight * l.standard, 0)
                + coalesce((1 - _fuse.lexical_weight) * s.standard, 0) as standard,
                l.place::int as lexical_rank,
                l.score as lexical_score,
                s.place::int as semantic_rank,
                s.similarity
            from unnest(_fuse.lexical_chunks, _fuse.lexical_scores, _fuse.lexical_standards)
                with ordinality as l (chunk_id, score, standard, place)
            full join unnest(_fuse.semantic_chunks, _fuse.similarities, _fuse.semantic_standards)
                with ordinality as s (chunk_id, similarity, standard, place)
                on s.chunk_id = l.chunk_id
        ) as f
        left join unnest(v_supported, v_supports) as u (chunk_id, support)
            on u.chunk_id = f.chunk_id
        order by
            f.score + coalesce(u.support, 0) desc, f.standard desc, f.similarity desc nulls last,
            f.chunk_id
    ) as o;
end
$$;

comment on function rag._fuse(
    int, int, int, bigint[], double precision[], double precision[], bigint[], double precision[],
    double precision[], text, double precision
) is 'One list of two, best first.';
