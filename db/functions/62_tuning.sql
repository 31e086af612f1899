-- Tuning: the weights of a collection's search, found by its judged questions.
--
-- The legs are searched once for each question; what each candidate would have made of their lists
-- is computed from those. Which candidate is best is noisy with 50 questions, so a candidate's mean
-- is smoothed by those of its neighbours, and the whole procedure is cross-validated: only if its
-- choice is above the default on questions it has not seen, it is trusted. docs/tuning.md has what
-- else was tried, with numbers.

create or replace function rag._candidate_scores(
    tenant_id int,
    partition_id int,
    model_id int,
    legs jsonb,
    excluded bigint[],
    relevant text[],
    grades real[],
    fusions text[],
    weights real[]
)
    returns double precision[]
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
begin
    return (
        with
        candidates as materialized (
            select c.fusion, c.weight, c.n
            from unnest(_candidate_scores.fusions, _candidate_scores.weights)
                with ordinality as c (fusion, weight, n)
        ),
        listed as materialized (
            select
                l.chunk_id,
                l.score,
                l.standard,
                true as is_lexical,
                row_number() over (order by l.place) as place
            from unnest(
                array(
                    select e.item::bigint
                    from jsonb_array_elements_text(nullif(legs -> 'lexical_chunks', 'null'))
                        as e (item)
                ),
                rag._reals(legs -> 'lexical_scores'), rag._reals(legs -> 'lexical_standards')
            ) with ordinality as l (chunk_id, score, standard, place)
            where not l.chunk_id = any(_candidate_scores.excluded)
            union all
            select
                s.chunk_id,
                s.similarity,
                s.standard,
                false,
                row_number() over (order by s.place)
            from unnest(
                array(
                    select e.item::bigint
                    from jsonb_array_elements_text(nullif(legs -> 'semantic_chunks', 'null'))
                        as e (item)
                ),
                rag._reals(legs -> 'similarities'), rag._reals(legs -> 'semantic_standards')
            ) with ordinality as s (chunk_id, similarity, standard, place)
            where not s.chunk_id = any(_candidate_scores.excluded)
        ),
        ranged as (
            select
                l.*,
                min(l.score) over (partition by l.is_lexical) as least,
                max(l.score) over (partition by l.is_lexical) as greatest
            from listed as l
        ),
        parts as materialized (
            select
                r.chunk_id,
                f.fusion,
                coalesce(sum(p.part) filter (where r.is_lexical), 0) as lexical_part,
                coalesce(sum(p.part) filter (where not r.is_lexical), 0) as semantic_part,
                max(r.score) filter (where not r.is_lexical) as similarity
            from ranged as r
            cross join (select distinct c.fusion from candidates as c) as f
            cross join lateral (
                select rag._contribution(
                    f.fusion, r.place, r.standard, r.score, r.least, r.greatest
                ) as part
            ) as p
            group by r.chunk_id, f.fusion
        ),
        -- As rag._fuse has it: what is like the best passage comes up behind it. Few passages are
        -- the best of any candidate.
        bests as materialized (
            select distinct on (c.n) c.n, p.chunk_id as best
            from candidates as c
            join parts as p on p.fusion = c.fusion
            where c.fusion = 'standard'
            order by
                c.n, c.weight * p.lexical_part + (1 - c.weight) * p.semantic_part desc, p.chunk_id
        ),
        scale as materialized (
            select
                regr_slope(l.standard, l.score) as slope,
                regr_intercept(l.standard, l.score) as intercept
            from listed as l
            where not l.is_lexical
        ),
        supports as materialized (
            select d.best, s.chunk_id, rag._support_weight()
                * (s.similarity * e.slope + e.intercept) as support
            from (select distinct b.best from bests as b) as d
            cross join scale as e
            cross join lateral rag._support(
                _candidate_scores.tenant_id, _candidate_scores.partition_id,
                _candidate_scores.model_id, d.best,
                array(select distinct l.chunk_id from listed as l)
            ) as s
            where
                exists (select from listed as l where l.is_lexical)
                and exists (select from listed as l where not l.is_lexical)
        ),
        placed as (
            select
                c.n,
                p.chunk_id,
                row_number() over (
                    partition by c.n
                    order by
                        c.weight * p.lexical_part
                        + (1 - c.weight) * (p.semantic_part + coalesce(u.support, 0)) desc,
                        p.similarity desc nulls last,
                        p.chunk_id
                ) as place
            from parts as p
            join candidates as c on c.fusion = p.fusion
            left join bests as b on b.n = c.n
            left join supports as u on u.best = b.best and u.chunk_id = p.chunk_id
        ),
        named as materialized (
            select k.chunk_id, d.uri
            from (select distinct p.chunk_id from parts as p) as p
            join rag.chunks as k
                on k.partition_id = _candidate_scores.partition_id
                and k.tenant_id = _candidate_scores.tenant_id
                and k.chunk_id = p.chunk_id
            join rag.documents as d
                on d.tenant_id = _candidate_scores.tenant_id and d.document_id = k.document_id
        ),
        found as (
            select p.n, array_agg(d.uri order by p.place) as uris
            from placed as p
            join named as d on d.chunk_id = p.chunk_id
            -- As many passages as rag.evaluate looks at.
            where p.place <= 50
            group by p.n
        )
        select array_agg(coalesce(m.ndcg, 0) order by c.n)
        from candidates as c
        left join found as f on f.n = c.n
        left join lateral rag._measures(
            f.uris, _candidate_scores.relevant, _candidate_scores.grades, 10
        ) as m on true
    );
end
$$;

comment on function rag._candidate_scores(
    int, int, int, jsonb, bigint[], text[], real[], text[], real[]
) is 'nDCG@10 of one question for each pair of fusion and lexical weight, from the legs'' lists.';

create or replace function rag._derived_questions(
    tenant_id int, partition_id int, collection_id int, questions int
)
    returns table (query text, uri text, excluded bigint[])
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
begin
    -- An inverse cloze task (Lee, Chang and Toutanova 2019): a sentence is the question, its
    -- document the answer, without the chunks that hold the sentence: by what stands around it the
    -- document has to be found. A document of nothing else is no answer: sentences find themselves
    -- by their words, and on cranfield that moved the weight to where judged questions lose by it.
    return query
    with
    drawn as materialized (
        select c.chunk_id, c.document_id, c.content
        from rag.chunks as c
        where
            c.partition_id = _derived_questions.partition_id
            and c.tenant_id = _derived_questions.tenant_id
            and c.collection_id = _derived_questions.collection_id
        -- At random, and the same each time.
        order by hashint8extended(c.chunk_id, 1)
        limit 4 * _derived_questions.questions
    ),
    asked as materialized (
        select d.document_id, s.sentence
        from drawn as d
        cross join lateral (
            select btrim(x.sentence) as sentence
            from regexp_split_to_table(d.content, '(?<=[.!?。])\s+|\n+') as x (sentence)
            where
                length(x.sentence) <= 300
                and regexp_count(x.sentence, '[[:alpha:]]{2,}') between 4 and 40
            order by hashtextextended(x.sentence, 1)
            limit 1
        ) as s
    )
    select a.sentence, d.uri, h.chunks
    from asked as a
    join rag.documents as d
        on d.tenant_id = _derived_questions.tenant_id and d.document_id = a.document_id
    cross join lateral (
        select array_agg(y.chunk_id) filter (where y.has) as chunks
        from (
            select c.chunk_id, strpos(c.content, a.sentence) > 0 as has
            from rag.chunks as c
            where
                c.partition_id = _derived_questions.partition_id
                and c.tenant_id = _derived_questions.tenant_id
                and c.document_id = a.document_id
        ) as y
        having bool_or(not y.has)
    ) as h
    limit _derived_questions.questions;
end
$$;

comment on function rag._derived_questions(int, int, int, int) is
    'Questions made of sentences of a collection''s chunks, the document that answers each, and '
    'the chunks that must not.';

create or replace function rag._tuning_questions(
    tenant_id int,
    partition_id int,
    collection_id int,
    eval_set_id int,
    use_embeddings boolean,
    questions int
)
    returns table (
        query text, embedding vector, uris text[], grades real[], excluded bigint[]
    )
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select
        q.query,
        case when _tuning_questions.use_embeddings then q.embedding end,
        j.uris,
        j.grades,
        '{}'::bigint[]
    from rag.eval_sets as s
    join rag.eval_queries as q
        on q.tenant_id = _tuning_questions.tenant_id and q.eval_set_id = s.eval_set_id
    cross join lateral (
        select
            array_agg(g.uri order by g.uri) as uris,
            array_agg(g.grade order by g.uri) as grades
        from rag.judgements as g
        where
            g.tenant_id = _tuning_questions.tenant_id
            and g.eval_set_id = s.eval_set_id
            and g.query_id = q.query_id
        having max(g.grade) > 0
    ) as j
    where
        s.tenant_id = _tuning_questions.tenant_id
        and s.collection_id = _tuning_questions.collection_id
        and (
            _tuning_questions.eval_set_id is null
            or s.eval_set_id = _tuning_questions.eval_set_id
        )
    -- So that folds are drawn at random, and the same each time.
    order by hashtextextended(q.query, 1), q.query_id
    limit _tuning_questions.questions;
    if found or _tuning_questions.eval_set_id is not null then
        return;
    end if;
    return query
    select d.query, null::vector, array[d.uri], array[1::real], d.excluded
    from rag._derived_questions(
        _tuning_questions.tenant_id, _tuning_questions.partition_id,
        _tuning_questions.collection_id, _tuning_questions.questions
    ) as d;
end
$$;

comment on function rag._tuning_questions(int, int, int, int, boolean, int) is
    'The judged questions of a collection, or, where there are none, derived ones (their embedding '
    'and its judgements as rag._candidate_scores takes them).';

create or replace function rag.tune(
    collection text default 'default',
    eval_set text default null,
    use_embeddings boolean default true,
    apply boolean default true,
    questions int default 500,
    folds int default 5
)
    returns table (
        fusion text,
        lexical_weight real,
        ndcg double precision,
        is_chosen boolean,
        note text,
        judged_questions int,
        derived_questions int
    )
    language plpgsql
    volatile
    parallel unsafe
    security definer
    rows 50
    set search_path = pg_catalog, public, pg_temp
    set jit = off
as $$
#variable_conflict use_column
declare
    v_context rag.tenants;
    v_collection rag.collections;
    v_set int;
    v_model rag.models;
    v_question record;
    v_embedded record;
    v_must tsquery;
    v_legs record;
    v_fusions text[];
    v_weights real[];
    v_values double precision[] := '{}';
    v_asked int := 0;
    v_noted int := 0;
    v_derived int := 0;
    v_default int;
    v_best int;
    v_validated double precision;
    v_chosen int;
begin
    if tune.folds is null or tune.folds not between 2 and 50
        or tune.questions is null or tune.questions not between 1 and 10000
    then
        raise exception 'invalid number of folds or questions' using
            errcode = 'invalid_parameter_value',
            detail = format('folds is %s, questions is %s.', coalesce(tune.folds::text, 'null'),
                coalesce(tune.questions::text, 'null')),
            hint = 'folds is 2 to 50, questions is 1 to 10,000.';
    end if;
    v_context := rag._acting_tenant();
    v_collection := rag._collection(v_context.tenant_id, tune.collection);
    if tune.eval_set is not null then
        v_set := (rag._eval_set(v_context.tenant_id, tune.eval_set)).eval_set_id;
    end if;
    v_model := rag._active_model(v_context.tenant_id);
    -- RRF is no candidate: where weights were tried it was never ahead of the other two.
    select
        array_agg(f.fusion order by f.place, w), array_agg((w / 20.0)::real order by f.place, w)
    into v_fusions, v_weights
    from unnest(array['standard', 'linear']) with ordinality as f (fusion, place)
    cross join generate_series(0, 20) as w;
    v_default := 11;

    for v_question in
        select q.query, q.embedding, q.uris, q.grades, q.excluded
        from rag._tuning_questions(
            v_context.tenant_id, v_context.partition_id, v_collection.collection_id, v_set,
            coalesce(tune.use_embeddings, true), tune.questions
        ) as q
    loop
        -- Posting lists and word vectors may be replaced while this runs.
        v_context := rag._acting_tenant();
        v_model.word_vector_set := (
            select m.word_vector_set from rag.models as m where m.model_id = v_model.model_id
        );
        v_embedded := rag._query_embedding(
            v_context.tenant_id, v_model, v_question.query, v_question.embedding
        );
        -- With one leg there is nothing to weigh.
        if v_embedded.kind <> 'none' then
            v_must := (
                rag._query_terms(
                    v_context.tenant_id, v_collection.collection_id, v_question.query
                )
            ).must;
            v_legs := rag._legs(
                v_context.tenant_id, v_context.partition_id, v_collection.collection_id,
                v_question.query, null, 'hybrid', v_model.model_id, v_embedded.kind,
                v_embedded.embedding, v_must,
                rag._search_depth(50, 'hybrid', null, null, null), null, null, 1, false,
                coalesce(v_model.model_id = any(v_context.hnsw_models), false),
                v_context.posting_generation
            );
            v_values := v_values || rag._candidate_scores(
                v_context.tenant_id, v_context.partition_id, v_model.model_id, to_jsonb(v_legs),
                v_question.excluded, v_question.uris, v_question.grades, v_fusions, v_weights
            );
            v_asked := v_asked + 1;
        end if;
        if v_question.embedding is null and v_embedded.kind <> 'cached' then
            -- Exact the next time.
            perform rag.prepare_query(v_question.query);
            v_noted := v_noted + 1;
        end if;
    end loop;
    if v_asked = 0 and v_noted > 0 then
        -- No error, or the questions just noted would be forgotten with it.
        return query
        select
            null::text, null::real, null::double precision, false,
            format(
                '%s questions wait for their embeddings, 100 at a time: call again when an '
                'embedder has made them', v_noted
            ),
            0, 0;
        return;
    end if;
    if v_asked = 0 then
        raise exception 'there is no question to tune by' using
            errcode = 'no_data_found',
            detail = format(
                'Collection %L has no judged question and no text to make one of.',
                tune.collection
            ),
            hint = 'Add judged questions by rag.add_judgements(name, judgements, collection), with '
            'the embedding of each; or put documents of more than one passage.';
    end if;
    if v_set is null and not exists (
        select
        from rag.eval_sets as s
        where
            s.tenant_id = v_context.tenant_id and s.collection_id = v_collection.collection_id
    ) then
        v_derived := v_asked;
    end if;

    -- Fold number folds leaves nothing out: its choice is the one that counts, and those of the
    -- others tell how good such a choice is on questions that it has not seen.
    with
    measured as materialized (
        select
            (u.n - 1) / cardinality(v_fusions) % tune.folds as fold,
            ((u.n - 1) % cardinality(v_fusions) + 1)::int as candidate,
            u.value
        from unnest(v_values) with ordinality as u (value, n)
    ),
    means as (
        select l.left_out, m.candidate, avg(m.value) as mean
        from measured as m
        cross join generate_series(0, tune.folds) as l (left_out)
        where m.fold <> l.left_out
        group by l.left_out, m.candidate
    ),
    smoothed as (
        select
            e.left_out,
            e.candidate,
            0.5 * e.mean
            + 0.25 * coalesce(lag(e.mean) over neighbours, e.mean)
            + 0.25 * coalesce(lead(e.mean) over neighbours, e.mean) as mean
        from means as e
        window neighbours as (
            partition by e.left_out, v_fusions[e.candidate] order by e.candidate
        )
    ),
    choices as (
        select distinct on (s.left_out) s.left_out, s.candidate
        from smoothed as s
        -- min_score means the same everywhere on the standard scale alone, so another fusion has to
        -- be half a point ahead.
        order by
            s.left_out,
            s.mean - case when v_fusions[s.candidate] = 'standard' then 0 else 0.005 end desc,
            abs(v_weights[s.candidate] - 0.5), s.candidate
    )
    select
        max(c.candidate) filter (where c.left_out = tune.folds),
        avg(m.value) filter (where m.fold = c.left_out)
    into v_best, v_validated
    from choices as c
    join measured as m on m.candidate = c.candidate;

    -- Ten questions prove nothing.
    v_chosen := case
        when v_asked >= 10 and v_validated > (
            select avg(v_values[(n - 1) * cardinality(v_fusions) + v_default])
            from generate_series(1, v_asked) as n
        ) then v_best
        else v_default
    end;
    -- Sentences share their words with what surrounds them more than questions do, so they speak
    -- for the lexical leg: half the way.
    if v_derived > 0 then
        select c.n into v_chosen
        from generate_series(1, cardinality(v_fusions)) as c (n)
        where v_fusions[c.n] = v_fusions[v_chosen]
        order by abs(v_weights[c.n] - (v_weights[v_chosen] + v_weights[v_default]) / 2)
        limit 1;
    end if;
    if coalesce(tune.apply, true) then
        update rag.collections as n
        set fusion = v_fusions[v_chosen], lexical_weight = v_weights[v_chosen]
        where
            n.tenant_id = v_context.tenant_id and n.collection_id = v_collection.collection_id;
    end if;
    return query
    select
        v_fusions[c.n],
        v_weights[c.n],
        avg(v_values[(a - 1) * cardinality(v_fusions) + c.n]),
        c.n = v_chosen,
        nullif(concat_ws(
            ', ',
            case when v_weights[c.n] = 1 then 'the lexical leg alone' end,
            case when v_weights[c.n] = 0 then 'the semantic leg alone' end,
            case when c.n = v_default then 'the default' end,
            case
                when v_fusions[c.n] = v_collection.fusion
                    and v_weights[c.n] = v_collection.lexical_weight
                    then 'as it was'
            end,
            case when c.n = v_chosen then 'chosen' end
        ), ''),
        v_asked - v_derived,
        v_derived
    from generate_series(1, cardinality(v_fusions)) as c (n)
    cross join generate_series(1, v_asked) as a
    group by c.n
    union all
    select
        null, null, v_validated, false, 'cross-validated: what such a choice is worth',
        v_asked - v_derived, v_derived
    order by 4 desc, 3 desc, 1 desc, 2;
end
$$;

comment on function rag.tune(text, text, boolean, boolean, int, int) is
    'Set fusion and lexical weight of a collection by its judged questions, or by sentences of its '
    'own where there are none; cross-validated, and the default stays if nothing is better. A row '
    'for each candidate with its nDCG@10, the chosen one first.';
