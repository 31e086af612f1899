-- A query as BM25 sees it: its lexemes, what they weigh, and what a chunk must match.

create or replace function rag._quote_lexeme(lexeme text)
    returns text
    language sql
    immutable
    parallel safe
    security invoker
return '''' || replace(replace(lexeme, '\', '\\'), '''', '''''') || '''';

comment on function rag._quote_lexeme(text) is 'A lexeme as it is written in a tsquery.';

create or replace function rag._parse_query(
    query text,
    language text,
    out terms text[],
    out frequencies double precision[],
    out phrases tsquery,
    out excluded tsquery
)
    returns record
    language plpgsql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- That a phrase has only stop words is no news to whoever searches.
    set client_min_messages = warning
as $$
declare
    v_config regconfig := _parse_query.language::regconfig;
    -- A minus excludes where a word begins: "-old" does, the hyphen of "e-mail" does not.
    v_excluded constant text := '(?<=^|\s)-("[^"]*"|[^\s"]+)';
    v_phrase constant text := '"([^"]+)"';
    -- A question is short; of a whole document the first 10,000 characters will do.
    v_query text := left(_parse_query.query, 10000);
    v_free text := v_query;
    v_part text;
    v_one tsquery;
begin
    if strpos(v_query, '-') > 0 then
        v_free := regexp_replace(v_query, v_excluded, ' ', 'g');
    end if;
    -- What is in second place only, parts and the other spelling, counts a third. By a half, words
    -- with an accent count for more than the others (nDCG@10 of xquad-es 0.9661 instead of 0.9669),
    -- by a quarter parts too little (scifact 0.6929 instead of 0.6953).
    select array_agg(u.lexeme), array_agg(coalesce(cardinality(u.positions), 0.35))
    into terms, frequencies
    from unnest(rag._lexemes(_parse_query.language, v_free)) as u;
    -- Most queries have neither, and each look is 20 µs.
    if strpos(v_query, '"') = 0 and strpos(v_query, '-') = 0 then
        return;
    end if;
    for v_part in select m[1] from regexp_matches(v_free, v_phrase, 'g') as m limit 100 loop
        v_one := rag._fold_accents(phraseto_tsquery(v_config, v_part)::text)::tsquery;
        if numnode(v_one) > 0 then
            phrases := coalesce(phrases && v_one, v_one);
        end if;
    end loop;
    for v_part in select m[1] from regexp_matches(v_query, v_excluded, 'g') as m limit 100 loop
        v_one := rag._fold_accents(phraseto_tsquery(v_config, v_part)::text)::tsquery;
        if numnode(v_one) > 0 then
            excluded := coalesce(excluded || v_one, v_one);
        end if;
    end loop;
end
$$;

comment on function rag._parse_query(text, text) is
    'The lexemes of a query with their frequencies (null if it has none), its phrases in quotes, '
    'which a chunk must have, and what it excludes by minus (null if it has none).';

create or replace function rag._without_stop_words(query text, languages text[])
    returns text
    language plpgsql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_query text := left(_without_stop_words.query, 10000);
    v_stops text[];
begin
    -- "how" says nothing of an English question, but to a Spanish stemmer it is a word like any
    -- other, and a rare one: the only page of a Spanish collection with English in it came first.
    if cardinality(_without_stop_words.languages) < 2 then
        return v_query;
    end if;
    v_stops := array(
        select distinct w.word
        from regexp_matches(v_query, '[[:alpha:]]+', 'g') as m (words)
        cross join lateral (select m.words[1] as word) as w
        cross join unnest(_without_stop_words.languages) as l (language)
        where to_tsvector(l.language::regconfig, w.word) = ''
    );
    if v_stops = '{}' then
        return v_query;
    end if;
    -- Not in phrases, which are asked for as they are.
    return (
        select string_agg(
            case
                when p.n % 2 = 0 then '"' || p.part || '"'
                else regexp_replace(
                    p.part,
                    '(?<![-\w''.@/])(' || array_to_string(v_stops, '|') || ')(?![-\w''.@/])',
                    ' ', 'g'
                )
            end,
            '' order by p.n
        )
        from string_to_table(v_query, '"') with ordinality as p (part, n)
    );
end
$$;

comment on function rag._without_stop_words(text, text[]) is
    'The query without words that are stop words in any of several languages.';

create or replace function rag._query_terms(
    tenant_id int,
    collection_id int,
    query text,
    out terms text[],
    out counts double precision[],
    out idfs double precision[],
    out bounds double precision[],
    out deviation double precision,
    out must tsquery,
    out chunks double precision,
    out mean_length double precision,
    out reference_length double precision
)
    returns record
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- One plan for a session: planning is most of the work, and opens every index.
    set plan_cache_mode = force_generic_plan
    set enable_seqscan = off
    set jit = off
as $$
#variable_conflict use_column
declare
    v_total record;
    v_parsed record;
    v_languages text[];
    v_language text;
    v_query text;
    v_lexemes text[] := '{}';
    v_frequencies double precision[] := '{}';
    v_excluded tsquery;
begin
    -- Each text is indexed in its own language, so the words are looked for in all of them.
    v_languages := array(
        select distinct l.language
        from (
            select n.languages
            from rag.collections as n
            where
                n.tenant_id = _query_terms.tenant_id
                and (_query_terms.collection_id is null
                    or n.collection_id = _query_terms.collection_id)
            -- By the primary key, which the search has open anyway: a lock less.
            order by n.collection_id
        ) as c
        cross join unnest(c.languages) as l (language)
    );
    if cardinality(v_languages) > 1 then
        -- The language of a collection that holds nothing would only add words to the query.
        v_languages := array(
            select distinct l.language
            from (
                select n.languages
                from rag.collections as n
                where
                    n.tenant_id = _query_terms.tenant_id
                    and (_query_terms.collection_id is null
                        or n.collection_id = _query_terms.collection_id)
                    and exists (
                        select
                        from rag.documents as d
                        where d.tenant_id = n.tenant_id and d.collection_id = n.collection_id
                    )
                order by n.collection_id
            ) as c
            cross join unnest(c.languages) as l (language)
        );
    end if;
    -- One that was dropped takes its own words along, not the search.
    foreach v_language in array v_languages loop
        if not pg_input_is_valid(v_language, 'regconfig') then
            v_languages := array_remove(v_languages, v_language);
        end if;
    end loop;
    v_query := rag._without_stop_words(_query_terms.query, v_languages);
    foreach v_language in array v_languages loop
        v_parsed := rag._parse_query(v_query, v_language);
        v_lexemes := v_lexemes || v_parsed.terms;
        v_frequencies := v_frequencies || v_parsed.frequencies;
        -- A phrase may be there in any of the languages, what is excluded in none.
        must := coalesce(must || v_parsed.phrases, must, v_parsed.phrases);
        v_excluded := coalesce(v_excluded || v_parsed.excluded, v_excluded, v_parsed.excluded);
    end loop;
    must := coalesce(must && !!v_excluded, must, !!v_excluded);
    if rag._is_traced() then
        perform rag._note('words', jsonb_build_object(
            'languages', v_languages, 'query', v_query, 'lexemes', v_lexemes, 'must', must::text
        ));
    end if;
    if cardinality(v_lexemes) = 0 then
        return;
    end if;
    v_total := rag._lexical_totals(_query_terms.tenant_id);
    chunks := v_total.chunks;
    mean_length := v_total.mean_length;
    reference_length := v_total.reference_length;

    -- The rarest first. 64 are enough: the commonest of a long text add next to nothing to a
    -- score, and each costs a look-up of its postings.
    select
        array_agg(t.lexeme order by t.chunks, t.lexeme),
        array_agg(t.chunks order by t.chunks, t.lexeme),
        array_agg(t.idf order by t.chunks, t.lexeme),
        array_agg(t.idf * t.max_weight order by t.chunks, t.lexeme),
        -- As if words came independently: the mean nDCG@10 of four collections is 0.001 below
        -- that with the true deviation, which would need a scan.
        sqrt(sum(greatest(0, t.idf ^ 2 * (
            t.sum_square / v_total.chunks - (t.sum_weight / v_total.chunks) ^ 2
        ))))
    into terms, counts, idfs, bounds, deviation
    from (
        select
            s.lexeme,
            s.chunks,
            s.max_weight,
            s.sum_weight,
            s.sum_square,
            q.frequency * ln(
                1 + (greatest(v_total.chunks, s.chunks) - s.chunks + 0.5) / (s.chunks + 0.5)
            ) as idf
        from rag._lexeme_totals(_query_terms.tenant_id, v_lexemes) as s
        join (
            -- Two languages often stem a word alike; then it is one lexeme.
            select g.lexeme, max(g.frequency) as frequency
            from unnest(v_lexemes, v_frequencies) as g (lexeme, frequency)
            group by g.lexeme
        ) as q on q.lexeme = s.lexeme
        order by s.chunks, s.lexeme
        limit 64
    ) as t;
end
$$;

comment on function rag._query_terms(int, int, text) is
    'The query as BM25 sees it: its lexemes that the tenant has, rarest first, in how many chunks '
    'each is, its idf, and the most it can add to a score; the standard deviation of the scores of '
    'all chunks; what a chunk must match; how many chunks there are, and their mean length.';

create or replace function rag._sparse(lexemes text[], weights double precision[])
    returns sparsevec
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select
        ('{' || string_agg(d.dimension || ':' || d.weight::real, ',') || '}/1000000000')::sparsevec
    from (
        select rag._lexeme_dimension(g.lexeme) as dimension, max(g.weight) as weight
        from unnest(lexemes, weights) as g (lexeme, weight)
        group by rag._lexeme_dimension(g.lexeme)
    ) as d
$$;

comment on function rag._sparse(text[], double precision[]) is
    'Weights of lexemes as a sparsevec of the kind that rag.lexemes holds.';
