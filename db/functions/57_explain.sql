-- rag.explain: the same search, told. It runs rag.search with the setting rag.trace on, in which
-- the parts of a search note what they do, and reads the notes; nothing of the search is done a
-- second time in another way. Only what a search has no need to know is counted here: how many
-- chunks matched, what a filter left out, where a chunk stands that is in no list.

create or replace function rag._trace(lines text)
    returns table (step int, stage text, detail jsonb, ms numeric)
    language sql
    stable
    parallel restricted
    security invoker
    rows 20
    set search_path = pg_catalog, public, pg_temp
as $$
    select
        n.step::int - 1,
        n.note ->> 'stage',
        n.note -> 'detail',
        round(1000 * extract(epoch from
            (n.note ->> 'at')::timestamptz
            - lag((n.note ->> 'at')::timestamptz) over (order by n.step)
        ), 3)
    from (
        select l.line::jsonb as note, l.step
        from string_to_table(lines, E'\n')
            with ordinality as l (line, step)
        where l.step > 1
    ) as n
$$;

comment on function rag._trace(text) is
    'What a search has noted, in its order, and how long each stage took.';

create or replace function rag._reals(list jsonb)
    returns double precision[]
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select array_agg(e.item::double precision order by e.place)
    from jsonb_array_elements_text(nullif(list, 'null')) with ordinality as e (item, place)
$$;

comment on function rag._reals(jsonb) is 'The numbers of a JSON array.';

create or replace function rag._place(list jsonb, chunk_id bigint)
    returns bigint
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select min(e.place)
    from jsonb_array_elements(nullif(list, 'null')) with ordinality as e (item, place)
    where e.item = to_jsonb(_place.chunk_id)
$$;

comment on function rag._place(jsonb, bigint) is 'Where a chunk stands in a JSON array; or null.';

create or replace function rag._count_chunks(
    tenant_id int,
    partition_id int,
    matching tsquery,
    collection_id int,
    filter jsonpath,
    must tsquery,
    out matched bigint,
    out in_collection bigint,
    out after_filter bigint,
    out after_must bigint
)
    returns record
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
    select
        count(*),
        count(*) filter (where x.is_here),
        count(*) filter (where x.is_here and x.passes),
        count(*) filter (where x.is_here and x.passes and x.has)
    into matched, in_collection, after_filter, after_must
    from rag.lexemes as l
    cross join lateral (
        select
            _count_chunks.collection_id is null
            or l.collection_id = _count_chunks.collection_id as is_here,
            _count_chunks.filter is null or exists (
                select
                from rag.chunks as c
                where
                    c.partition_id = _count_chunks.partition_id
                    and c.tenant_id = _count_chunks.tenant_id
                    and c.chunk_id = l.chunk_id
                    and c.metadata @@ _count_chunks.filter
            ) as passes,
            _count_chunks.must is null or l.lexemes @@ _count_chunks.must as has
    ) as x
    where
        l.partition_id = _count_chunks.partition_id
        and l.tenant_id = _count_chunks.tenant_id
        and (_count_chunks.matching is null or l.lexemes @@ _count_chunks.matching);
end
$$;

comment on function rag._count_chunks(int, int, tsquery, int, jsonpath, tsquery) is
    'How many of the tenant''s chunks match a query (null: all), and how many of those are left by '
    'the collection, by the filter, and by phrases and exclusions.';

create or replace function rag._left_by(counts jsonb, meaning text)
    returns table (item text, value text)
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select x.item, x.value::text
    from (
        values
        (1, 'chunks: ' || meaning, (counts ->> 'matched')::bigint),
        (
            2, 'in other collections',
            (counts ->> 'matched')::bigint - (counts ->> 'in_collection')::bigint
        ),
        (
            3, 'dropped by the filter',
            (counts ->> 'in_collection')::bigint - (counts ->> 'after_filter')::bigint
        ),
        (
            4, 'dropped by phrases and exclusions',
            (counts ->> 'after_filter')::bigint - (counts ->> 'after_must')::bigint
        )
    ) as x (n, item, value)
    where x.n = 1 or x.value > 0
    order by x.n
$$;

comment on function rag._left_by(jsonb, text) is
    'How many chunks there were, and how many of those each condition dropped.';

create or replace function rag._explain_words(tenant_id int, query text, words jsonb, terms jsonb)
    returns table (item text, value text, detail jsonb)
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_languages text[] := array(select jsonb_array_elements_text(words -> 'languages'));
    v_known text[] := array(
        select jsonb_array_elements_text(coalesce(nullif(terms -> 'terms', 'null'), '[]'))
    );
begin
    return query
    select
        t.lexeme,
        format(
            'in %s of %s chunks, idf %s, adds at most %s',
            t.chunks, terms ->> 'chunks', round(t.idf::numeric, 3), round(t.bound::numeric, 3)
        ),
        jsonb_build_object('chunks', t.chunks, 'idf', t.idf, 'bound', t.bound)
    from unnest(
        v_known, rag._reals(terms -> 'counts'), rag._reals(terms -> 'idfs'),
        rag._reals(terms -> 'bounds')
    ) with ordinality as t (lexeme, chunks, idf, bound, place)
    order by t.place;
    -- What the query says and the lexical leg does not look for.
    return query
    with
    said as (
        select lower(m.words[1]) as word, min(m.place) as place
        from regexp_matches(left(_explain_words.query, 10000), '[[:alnum:]]+', 'g')
            with ordinality as m (words, place)
        group by lower(m.words[1])
    ),
    read as (
        select
            s.word,
            s.place,
            (
                select coalesce(array_agg(distinct x.lexeme), '{}')
                from unnest(v_languages) as l (language)
                cross join lateral unnest(
                    tsvector_to_array(rag._lexemes(l.language, s.word))
                ) as x (lexeme)
            ) as lexemes,
            exists (
                select
                from unnest(v_languages) as l (language)
                where to_tsvector(l.language::regconfig, s.word) = ''
            ) as is_stop_word
        from said as s
    )
    select
        r.word,
        case
            when r.is_stop_word then 'left out: a stop word'
            when not r.lexemes && array(select jsonb_array_elements_text(words -> 'lexemes'))
                then 'left out: excluded, or part of something else'
            when exists (
                select from rag._lexeme_totals(_explain_words.tenant_id, r.lexemes)
            ) then 'left out: not among the 64 rarest'
            else 'left out: in none of the chunks'
        end,
        jsonb_build_object('lexemes', r.lexemes)
    from read as r
    where not r.lexemes && v_known
    order by r.place
    limit 100;
    if words ->> 'must' is not null then
        return query
        select 'phrases, exclusions', words ->> 'must', words -> 'must';
    end if;
end
$$;

comment on function rag._explain_words(int, text, jsonb, jsonb) is
    'The words of a query as the lexical leg took them, from the notes of a search.';

create or replace function rag._explain_vectors(model_id int, query text)
    returns table (item text, value text)
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_set int := (
        select s.set_id
        from rag.word_vector_sets as s
        where s.model_id = _explain_vectors.model_id and s.is_current
    );
begin
    if v_set is null then
        return query select 'word vectors', 'the model has none yet';
        return;
    end if;
    return query
    select
        'word ' || t.word,
        case
            when w.word is not null then 'has a vector'
            when p.pieces <> '{}' then 'by its pieces ' || array_to_string(p.pieces, ' ')
            else 'unknown, left out'
        end
    from unnest(rag._query_tokens(_explain_vectors.query)) with ordinality as t (word, place)
    left join rag.word_vectors as w on w.set_id = v_set and w.word = t.word
    cross join lateral (
        select case when w.word is null then rag._word_pieces(v_set, t.word) end as pieces
    ) as p
    order by t.place;
end
$$;

comment on function rag._explain_vectors(int, text) is
    'Which words of a query have a vector, so that their sum can stand for the query''s embedding.';

create or replace function rag.explain(
    query text,
    k int default 10,
    collection text default null,
    filter jsonb default null,
    embedding vector default null,
    mode text default 'hybrid',
    lexical_weight real default null,
    min_score real default null,
    fusion text default null,
    max_per_document int default null,
    neighbours int default 0,
    chunk_id bigint default null,
    model text default null
)
    returns table (step int, stage text, item text, value text, ms numeric, detail jsonb)
    language plpgsql
    -- As rag.search, which it calls.
    volatile
    parallel unsafe
    security definer
    rows 50
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_context record;
    v_found bigint[];
    v_lines text;
    v_embedding jsonb;
    v_words jsonb;
    v_terms jsonb;
    v_fused jsonb;
    v_must tsquery;
    v_filter jsonpath;
    v_matched record;
    v_all record;
begin
    v_context := rag._context();
    perform set_config('rag.trace', 'on', true);
    perform rag._note('search', '{}');
    select array_agg(s.chunk_id order by s.rank) into v_found
    from rag.search(
        explain.query, explain.k, explain.collection, explain.filter, explain.embedding,
        explain.mode, explain.lexical_weight, explain.min_score, explain.fusion,
        explain.max_per_document, explain.neighbours, null, explain.model
    ) as s;
    perform rag._note('passages', '{}');
    v_lines := current_setting('rag.trace');
    perform set_config('rag.trace', '', true);

    select t.detail into v_embedding
    from rag._trace(v_lines) as t
    where t.stage = 'query embedding';
    select t.detail into v_words from rag._trace(v_lines) as t where t.stage = 'words' limit 1;
    select t.detail into v_terms from rag._trace(v_lines) as t where t.stage = 'lexemes' limit 1;
    select t.detail into v_fused
    from rag._trace(v_lines) as t
    where t.stage = 'fusion'
    order by t.step desc
    limit 1;
    if explain.mode = 'semantic' then
        -- The lexical leg only served to lead the query's vector.
        v_terms := null;
    end if;
    v_must := (v_words ->> 'must')::tsquery;
    v_filter := (v_embedding ->> 'filter')::jsonpath;

    return query
    select
        1, 'search', 'asked',
        format('%s, k %s, of tenant %s', explain.mode, explain.k, rag.current_tenant()),
        null::numeric, null::jsonb;
    return query
    select
        1, 'search', x.item, x.value, null::numeric, null::jsonb
    from (
        values
        ('collection', explain.collection),
        ('filter', explain.filter::text),
        ('min_score', explain.min_score::text),
        ('max_per_document', explain.max_per_document::text),
        ('neighbours', nullif(explain.neighbours, 0)::text)
    ) as x (item, value)
    where x.value is not null;

    return query
    select
        2, 'query embedding', v_embedding ->> 'kind',
        case v_embedding ->> 'kind'
            when 'given' then 'the caller''s vector'
            when 'cached' then 'the model''s own for this text, asked before'
            when 'words' then 'the sum of the vectors of its words'
            when 'none' then case explain.mode
                when 'lexical' then 'not wanted'
                else 'not in the cache, and no word has a vector: the lexical leg serves alone'
            end
        end,
        t.ms, jsonb_build_object('model', v_embedding -> 'model')
    from rag._trace(v_lines) as t
    where t.stage = 'query embedding';
    if explain.mode <> 'lexical' and v_embedding ->> 'kind' in ('words', 'none') then
        return query
        select 2, 'query embedding', w.item, w.value, null::numeric, null::jsonb
        from rag._explain_vectors((v_embedding ->> 'model_id')::int, explain.query) as w;
    end if;

    return query
    select
        3, 'words', 'looked up', format('in %s', array_to_string(array(
            select jsonb_array_elements_text(v_words -> 'languages')
        ), ', ')),
        sum(t.ms), v_words
    from rag._trace(v_lines) as t
    where t.stage in ('words', 'lexemes');
    return query
    select 3, 'words', w.item, w.value, null::numeric, w.detail
    from rag._explain_words(v_context.tenant_id, explain.query, v_words, v_terms) as w
    where explain.mode <> 'semantic';

    -- What was noted, as it was noted.
    return query
    select
        case when t.stage ~ '^(semantic|feedback)' then 5 else 4 end,
        case when t.stage ~ '^(semantic|feedback)' then 'semantic leg' else 'lexical leg' end,
        t.stage,
        coalesce(
            (
                select string_agg(e.key || ' ' || e.value, ', ' order by n.place)
                from jsonb_each_text(t.detail - 'embedding') as e
                left join unnest('{plan,listed,threshold}'::text[])
                    with ordinality as n (key, place) on n.key = e.key
                where e.key not in ('query', 'without')
            )
            || coalesce(
                (
                    select format(', %s chunks match', m.matched)
                    from rag._count_chunks(
                        v_context.tenant_id, v_context.partition_id,
                        case
                            when t.detail ->> 'without' is null
                                then (t.detail ->> 'query')::tsquery
                            else (t.detail ->> 'query')::tsquery
                                && !!(t.detail ->> 'without')::tsquery
                        end,
                        (v_embedding ->> 'collection_id')::int, v_filter, v_must
                    ) as m
                    where t.detail ->> 'query' is not null
                ),
                ''
            ),
            ''
        ),
        t.ms, t.detail
    from rag._trace(v_lines) as t
    where t.stage not in (
        'search', 'query embedding', 'words', 'lexemes', 'fusion', 'passages'
    )
    order by 1, t.step;
    if v_terms is not null then
        v_matched := rag._count_chunks(
            v_context.tenant_id, v_context.partition_id,
            (
                select string_agg(rag._quote_lexeme(x.lexeme), ' | ')
                from jsonb_array_elements_text(v_terms -> 'terms') as x (lexeme)
            )::tsquery,
            (v_embedding ->> 'collection_id')::int, v_filter, v_must
        );
        return query
        select 4, 'lexical leg', x.item, x.value, null::numeric, to_jsonb(v_matched)
        from rag._left_by(to_jsonb(v_matched), 'has one of the words') as x;
    end if;
    if v_embedding ->> 'kind' <> 'none' then
        v_all := rag._count_chunks(
            v_context.tenant_id, v_context.partition_id, null,
            (v_embedding ->> 'collection_id')::int, v_filter, v_must
        );
        return query
        select 5, 'semantic leg', x.item, x.value, null::numeric, to_jsonb(v_all)
        from rag._left_by(to_jsonb(v_all), 'there is') as x;
    end if;

    return query
    select
        6, 'fusion', v_fused ->> 'fusion',
        format(
            'lexical weight %s (%s), legs of %s: %s chunks, %s of them in both',
            v_fused ->> 'lexical_weight',
            case
                when v_embedding ->> 'kind' = 'none' or explain.mode <> 'hybrid'
                    then 'one leg alone'
                when explain.lexical_weight is not null then 'given'
                when explain.collection is not null then 'the collection''s'
                else 'the default'
            end,
            v_fused ->> 'depth', f.listed, f.lexical + f.semantic - f.listed
        ),
        t.ms,
        jsonb_build_object(
            'fusion', v_fused -> 'fusion', 'lexical_weight', v_fused -> 'lexical_weight',
            'depth', v_fused -> 'depth', 'listed', f.listed
        )
    from rag._trace(v_lines) as t
    cross join (
        select
            coalesce(cardinality(rag._reals(v_fused -> 'scores')), 0) as listed,
            coalesce(cardinality(rag._reals(v_fused -> 'lexical_scores')), 0) as lexical,
            coalesce(cardinality(rag._reals(v_fused -> 'similarities')), 0) as semantic
    ) as f
    where t.stage = 'fusion'
    order by t.step desc
    limit 1;
    if explain.min_score is not null then
        return query
        select
            6, 'fusion', 'below min_score',
            format(
                '%s dropped',
                jsonb_array_length(v_fused -> 'places') - coalesce(cardinality(v_found), 0)
            ),
            null::numeric, null::jsonb;
    end if;
    return query
    select
        7, 'passages', 'returned', coalesce(cardinality(v_found), 0)::text, t.ms, to_jsonb(v_found)
    from rag._trace(v_lines) as t
    where t.stage = 'passages';
    return query
    select 7, 'passages', 'all stages', null::text, sum(t.ms), null::jsonb
    from rag._trace(v_lines) as t;
    if explain.chunk_id is not null then
        return query
        select 8, 'chunk ' || explain.chunk_id, c.item, c.value, null::numeric, c.detail
        from rag._explain_chunk(
            v_context.tenant_id, v_context.partition_id, explain.chunk_id, explain.query,
            explain.filter,
            -- A query by words is led by passages: the led vector is what was searched with.
            v_embedding || coalesce(
                (
                    select jsonb_build_object('embedding', t.detail -> 'embedding')
                    from rag._trace(v_lines) as t
                    where t.stage = 'feedback'
                    order by t.step desc
                    limit 1
                ),
                '{}'
            ),
            v_terms, v_fused, v_must, v_found, explain.min_score, explain.max_per_document
        ) as c;
    end if;
end
$$;

comment on function rag.explain(
    text, int, text, jsonb, vector, text, real, real, text, int, int, bigint, text
) is
    'Search and tell what happened, stage by stage: which embedding the query had, its words, the '
    'legs and their plans, what was dropped, how long it took; with chunk_id also why that chunk '
    'stands where it stands, or why it is absent.';
