-- The lexical leg: which of a tenant's chunks hold the words of a query, by exact BM25.
--
-- Okapi BM25 (Robertson and Zaragoza 2009) with the idf of Lucene: the score of a chunk is the sum
-- over the query's lexemes of idf * f (k1 + 1) / (f + k1 (1 - b + b length / mean length)), where
-- idf = ln(1 + (N - n + 0.5) / (n + 0.5)). Stored weights hold the second factor, so a score is an
-- inner product, computed by pgvector.
--
-- Common words match half the corpus, so not every match is scored. A first round scores the
-- chunks with the rarest words; the last score that still makes the list is the threshold. Chunks
-- with none of those words can only beat it with enough of the other words together: the second
-- round asks GIN for just those. Nothing else could enter the list, so it is exact.

create or replace function rag._sets_beating(
    lexemes text[], bounds double precision[], threshold double precision, levels int
)
    returns text
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_parts text[] := '{}';
    v_reach double precision := 0;
begin
    -- By the greatest bound among the lexemes that a chunk has: with the n-th as the greatest it
    -- reaches at most the sum of the first n bounds.
    for n in 1 .. cardinality(_sets_beating.lexemes) loop
        v_reach := v_reach + _sets_beating.bounds[n];
        continue when v_reach <= _sets_beating.threshold;
        v_parts := v_parts || case
            when _sets_beating.bounds[n] > _sets_beating.threshold
                or n = 1
                or _sets_beating.levels = 1 then _sets_beating.lexemes[n]
            else format('(%s & (%s))', _sets_beating.lexemes[n], rag._sets_beating(
                _sets_beating.lexemes[:n - 1], _sets_beating.bounds[:n - 1],
                _sets_beating.threshold - _sets_beating.bounds[n], _sets_beating.levels - 1
            ))
        end;
    end loop;
    return nullif(array_to_string(v_parts, ' | '), '');
end
$$;

comment on function rag._sets_beating(text[], double precision[], double precision, int) is
    'A tsquery, as text, of the sets of lexemes (quoted, by bound ascending) whose bounds add up '
    'to more than the threshold; null if there is none. Sets of more than levels lexemes are cut '
    'to so many, which asks for too much, never for too little.';

create or replace function rag._parts_beating(
    lexemes text[], bounds double precision[], first int, last int, threshold double precision
)
    returns text[]
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_parts text[] := '{}';
    v_lexemes text[];
    v_bounds double precision[];
    v_missing double precision;
    v_sets text;
begin
    for n in _parts_beating.first .. _parts_beating.last loop
        v_missing := _parts_beating.threshold - _parts_beating.bounds[n];
        if v_missing < 0 then
            v_parts := v_parts || _parts_beating.lexemes[n];
            continue;
        end if;
        select array_agg(g.lexeme order by g.bound), array_agg(g.bound order by g.bound)
        into v_lexemes, v_bounds
        from unnest(_parts_beating.lexemes[n + 1:], _parts_beating.bounds[n + 1:])
            as g (lexeme, bound);
        -- Two more of many, three more of few: GIN looks at each alternative for each match.
        v_sets := rag._sets_beating(
            coalesce(v_lexemes, '{}'), v_bounds, v_missing,
            case when cardinality(v_lexemes) <= 8 then 2 else 1 end
        );
        if v_sets is not null then
            v_parts := v_parts || format('%s & (%s)', _parts_beating.lexemes[n], v_sets);
        end if;
    end loop;
    return v_parts;
end
$$;

comment on function rag._parts_beating(
    text[], double precision[], int, int, double precision
) is
    'For each of the lexemes from first to last (quoted, rarest first) a tsquery, as text, of the '
    'chunks that hold it and enough of those behind it to score above the threshold.';

create or replace function rag._score_chunks(
    tenant_id int,
    partition_id int,
    parts text[],
    excluded text,
    chunks bigint[],
    must tsquery,
    weights sparsevec,
    collection_id int,
    filter jsonpath,
    facets text[],
    depth int
)
    returns table (chunk_id bigint, score double precision)
    language plpgsql
    stable
    parallel restricted
    security invoker
    rows 100
    set search_path = pg_catalog, public, pg_temp
    set jit = off
    -- The only other way is through all rows of the partition, many tenants' among them.
    set enable_seqscan = off
as $$
declare
    v_facets text;
    v_conditions text;
    v_filter text := '';
begin
    if _score_chunks.chunks is not null then
        -- By the primary key: "is true" keeps the rest away from GIN.
        select coalesce(string_agg(format(' and (l.facets && %L) is true', f.any_of), ''), '')
        into v_facets
        from unnest(_score_chunks.facets) as f (any_of);
        v_conditions := 'l.chunk_id = any($7) and l.weights <#> $3 < 0' || v_facets || case
            when _score_chunks.must is null then ''
            else ' and (l.lexemes @@ $2) is true'
        end;
    else
        select coalesce(string_agg(format(' and l.facets && %L', f.any_of), ''), '')
        into v_facets
        from unnest(_score_chunks.facets) as f (any_of);
        -- Each part a condition of its own: their bitmaps are or-ed faster than GIN evaluates one
        -- long query for each match (111,000 matches of 11 words: 45 ms instead of 290).
        select string_agg(format('l.lexemes @@ %L%s', p.part, v_facets), ' or ') into v_conditions
        from unnest(_score_chunks.parts) as p (part);
        v_conditions := '(' || v_conditions || ')';
        if _score_chunks.excluded is not null then
            v_conditions := v_conditions
                || format(' and not l.lexemes @@ %L', _score_chunks.excluded);
        end if;
        if _score_chunks.must is not null then
            v_conditions := v_conditions || ' and l.lexemes @@ $2';
        end if;
    end if;
    if _score_chunks.collection_id is not null then
        v_conditions := v_conditions || ' and l.collection_id = $4';
    end if;
    -- From the best down, until enough have met it: the metadata of a match
    -- takes 5 µs to look up.
    if _score_chunks.filter is not null then
        v_filter := format(
            ' where (select c.metadata @@ $5 from rag_data.chunks_p%s as c '
            'where c.tenant_id = $1 and c.chunk_id = s.chunk_id)', _score_chunks.partition_id
        );
    end if;
    -- The partition by its name: through rag.lexemes twice as many locks are taken. The product is
    -- named once, or it is computed twice: 2 of 10 µs that a chunk takes.
    return query execute format(
        'select s.chunk_id, -s.product from (select p.chunk_id, p.product from ('
        'select l.chunk_id, l.weights <#> $3 as product from rag_data.lexemes_p%s as l '
        'where l.tenant_id = $1 and %s offset 0) as p '
        'order by p.product, p.chunk_id%s) as s%s limit $6',
        _score_chunks.partition_id, v_conditions,
        case when v_filter = '' then ' limit $6' else ' offset 0' end, v_filter
    )
    using _score_chunks.tenant_id, _score_chunks.must, _score_chunks.weights,
        _score_chunks.collection_id, _score_chunks.filter, _score_chunks.depth,
        _score_chunks.chunks;
end
$$;

comment on function rag._score_chunks(
    int, int, text[], text, bigint[], tsquery, sparsevec, int, jsonpath, text[], int
) is
    'The best, by the inner product of stored weights, of the tenant''s chunks that match one of '
    'the parts and not the excluded; or of those given that have a word of the query at all.';

create or replace function rag._is_for_posting_lists(
    counts double precision[],
    bounds double precision[],
    threshold double precision,
    blocks int,
    changes bigint,
    wanted double precision
)
    returns boolean
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_terms constant int := cardinality(_is_for_posting_lists.counts);
    v_reach double precision := 0;
    v_postings double precision := 0;
begin
    -- Without one of the others, a chunk with the commonest lexemes only does not beat it: GIN goes
    -- through the postings of the others.
    for n in reverse v_terms .. 1 loop
        v_reach := v_reach + _is_for_posting_lists.bounds[n];
        if v_reach > coalesce(_is_for_posting_lists.threshold, 0) then
            v_postings := v_postings + _is_for_posting_lists.counts[n];
        end if;
    end loop;
    -- In µs, measured at 1,000,000 chunks: a posting takes GIN 0.17 and 0.08 more for each lexeme
    -- that has to be looked for beside it. A block takes 18 for each list and 60 more. What is
    -- found there, or has changed, takes 2.5 to look at; three are looked at for one wanted.
    return _is_for_posting_lists.changes <= 20000
        and v_postings * (0.17 + 0.08 * (v_terms - 1))
        > 2000 + _is_for_posting_lists.blocks * (60 + 18 * v_terms)
        + 2.5 * (_is_for_posting_lists.changes + 3 * _is_for_posting_lists.wanted);
end
$$;

comment on function rag._is_for_posting_lists(
    double precision[], double precision[], double precision, int, bigint, double precision
) is
    'Whether posting lists find what beats a threshold in less time than GIN does; wanted is how '
    'many chunks there have to be for enough to meet the filter.';

create or replace function rag._top_chunks(
    tenant_id int,
    partition_id int,
    lexemes text[],
    counts double precision[],
    idfs double precision[],
    bounds double precision[],
    must tsquery,
    collection_id int,
    filter jsonpath,
    facets text[],
    share double precision,
    depth int,
    within bigint[],
    posting_generation int,
    out chunk_ids bigint[],
    out scores double precision[]
)
    returns record
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    -- Measured at 1,000,000 chunks: 1,000 to 5,000 matches in the first round did best.
    v_budget double precision := 2000;
    -- Those that have the facets, too.
    v_counts double precision[] := array(
        select _top_chunks.share * g.count
        from unnest(_top_chunks.counts) with ordinality as g (count, n)
        order by g.n
    );
    v_quoted text[] := array(
        select rag._quote_lexeme(g.lexeme)
        from unnest(_top_chunks.lexemes) with ordinality as g (lexeme, n)
        order by g.n
    );
    -- What GIN has to go through: with facets of a tenth, a hundredth and a thousandth of all it is
    -- as fast as with a quarter, a sixteenth and a sixtieth of the postings.
    v_postings double precision[] := array(
        select g.count * case
            when coalesce(_top_chunks.facets, '{}') = '{}' then 1
            else greatest(0.0001, _top_chunks.share) ^ 0.6
        end
        from unnest(_top_chunks.counts) with ordinality as g (count, n)
        order by g.n
    );
    v_terms int := cardinality(_top_chunks.lexemes);
    -- So many that enough of them meet the conditions; a sample may have found none that does.
    v_wanted double precision := _top_chunks.depth / greatest(_top_chunks.share, 0.0001);
    v_query sparsevec := rag._sparse(_top_chunks.lexemes, _top_chunks.idfs);
    v_round int := 0;
    v_first int := 1;
    v_last int;
    v_matches double precision;
    v_parts text[];
    v_threshold double precision := -1;
    v_dimensions int[];
    v_lists record;
    v_times int[];
    v_has_lists boolean := false;
    v_listed int;
    v_is_fine boolean;
    v_lists_wanted double precision;
    v_is_planned boolean := false;
    v_is_for_lists boolean := false;
begin
    if _top_chunks.within is not null then
        select
            array_agg(s.chunk_id order by s.score desc, s.chunk_id),
            array_agg(s.score order by s.score desc, s.chunk_id)
        into chunk_ids, scores
        from rag._score_chunks(
            _top_chunks.tenant_id, _top_chunks.partition_id, null, null, _top_chunks.within, null,
            v_query, null, null, null, _top_chunks.depth
        ) as s;
        return;
    end if;

    -- However few blocks they have.
    if _top_chunks.posting_generation is not null
        and rag._is_for_posting_lists(
            v_postings, _top_chunks.bounds, 0, 1, 0, _top_chunks.depth
        )
    then
        v_dimensions := array(
            select rag._lexeme_dimension(g.lexeme)
            from unnest(_top_chunks.lexemes) with ordinality as g (lexeme, n)
            order by g.n
        );
        v_lists := rag._posting_lists(
            _top_chunks.tenant_id, _top_chunks.posting_generation, v_dimensions, _top_chunks.idfs,
            _top_chunks.facets
        );
        -- Of those that have the rarest of its facets more meet the filter than of all.
        v_lists_wanted := greatest(
            _top_chunks.depth, v_wanted * coalesce(v_lists.mark_share, 1)
        );
        v_times := v_lists.times;
        v_has_lists := v_times is not null;
        -- What a chunk has to beat is about half of what it could have at most (.47 on average of
        -- 500 questions; .28 under a filter that keeps a tenth). If lists are faster by that, GIN
        -- is only asked for lexemes without one: to score the 2,000 matches of a rare one takes it
        -- 3 ms, to add its list 0.8.
        v_listed := cardinality(array_remove(v_times, null));
        v_is_planned := coalesce(v_listed > 0, false)
            and array_position(v_times[v_terms - v_listed + 1:], null) is null
            and rag._is_for_posting_lists(
                v_postings[v_terms - v_listed + 1:],
                _top_chunks.bounds[v_terms - v_listed + 1:],
                (
                    select 0.47 * greatest(0.0001, _top_chunks.share) ^ 0.22 * sum(g.bound)
                    from unnest(_top_chunks.bounds) as g (bound)
                ),
                v_lists.blocks, v_lists.changes, v_lists_wanted
            );
    end if;

    -- Where even the rarest lexeme is common, what holds the next one too is scored first: the
    -- last of so many of them is what a chunk has to beat, and few of all the others can.
    if v_terms > 1 and v_counts[1] > 2 * v_budget and not v_is_planned then
        select (array_agg(s.score order by s.score desc))[_top_chunks.depth] * (1 - 1e-6)
        into v_threshold
        from rag._score_chunks(
            _top_chunks.tenant_id, _top_chunks.partition_id,
            array[v_quoted[1] || ' & ' || v_quoted[2]], null, null, _top_chunks.must, v_query,
            _top_chunks.collection_id, _top_chunks.filter, _top_chunks.facets, _top_chunks.depth
        ) as s;
        v_threshold := coalesce(v_threshold, -1);
    end if;

    -- Round by round, from the rarest lexemes to the commonest. A round scores the chunks that hold
    -- one of its lexemes, none of the earlier ones, and together with later ones enough of them to
    -- beat the last chunk of the list so far. What an earlier round passed over has no chance later
    -- either: the list only gets better.
    while v_first <= v_terms loop
        -- Once it is known what a chunk has to beat: will posting lists do the rest in less time?
        if v_is_planned then
            v_is_for_lists := v_times[v_first] is not null;
        elsif v_has_lists and (v_round > 0 or v_threshold >= 0) then
            v_is_for_lists := array_position(v_times[v_first:], null) is null
                and rag._is_for_posting_lists(
                    v_postings[v_first:], _top_chunks.bounds[v_first:],
                    greatest(v_threshold, scores[_top_chunks.depth]), v_lists.blocks,
                    v_lists.changes, v_lists_wanted
                );
        end if;
        if v_is_for_lists then
            -- By fine lists if there are some of all that are left, and sums end where they may.
            select
                count(g.bound) = count(*)
                and sum(g.bound) <= 2 * rag._posting_mark() - 2 - case
                    when v_lists.mark_dimensions is null then 0 else rag._posting_mark()
                end
            into v_is_fine
            from unnest(v_lists.fine_bounds[v_first:]) as g (bound);
            select c.chunk_ids, c.scores into chunk_ids, scores
            from rag._posted_chunks(
                _top_chunks.tenant_id, _top_chunks.partition_id, _top_chunks.posting_generation,
                v_lists.blocks, v_lists.changes > 0,
                array(
                    select
                        case
                            when v_is_fine then rag._fine_dimension(g.dimension) else g.dimension
                        end
                    from unnest(v_dimensions[v_first:], v_times[v_first:]) as g (dimension, times)
                    cross join lateral generate_series(1, g.times)
                ),
                v_lists.mark_dimensions,
                case
                    when v_is_fine then rag._fine_posting_quantum() else rag._posting_quantum()
                end,
                v_lists.factor, v_threshold,
                (select sum(g.bound) from unnest(_top_chunks.bounds[v_first:]) as g (bound)),
                _top_chunks.must, v_query, _top_chunks.collection_id, _top_chunks.filter,
                _top_chunks.facets, v_lists_wanted, _top_chunks.depth, chunk_ids, scores
            ) as c;
            if rag._is_traced() then
                perform rag._note('posting lists', jsonb_build_object(
                    'lexemes', v_quoted[v_first:], 'blocks', v_lists.blocks, 'fine', v_is_fine,
                    'mark', v_lists.mark_dimensions[1],
                    'changes', v_lists.changes, 'listed', coalesce(cardinality(chunk_ids), 0),
                    'threshold', scores[_top_chunks.depth]
                ));
            end if;
            exit;
        end if;
        -- The next lexemes as the budget allows, but at least one.
        v_last := v_first;
        v_matches := v_counts[v_first];
        while v_last < v_terms and v_matches + v_counts[v_last + 1] <= v_budget loop
            exit when v_is_planned and v_times[v_last + 1] is not null;
            v_last := v_last + 1;
            v_matches := v_matches + v_counts[v_last];
        end loop;
        v_parts := rag._parts_beating(
            v_quoted, _top_chunks.bounds, v_first, v_last,
            greatest(v_threshold, scores[_top_chunks.depth])
        );
        if v_parts <> '{}' then
            select
                array_agg(b.chunk_id order by b.score desc, b.chunk_id),
                array_agg(b.score order by b.score desc, b.chunk_id)
            into chunk_ids, scores
            from (
                select a.chunk_id, a.score
                from (
                    select g.chunk_id, g.score
                    from unnest(chunk_ids, scores) as g (chunk_id, score)
                    union all
                    select s.chunk_id, s.score
                    from rag._score_chunks(
                        _top_chunks.tenant_id, _top_chunks.partition_id, v_parts,
                        nullif(array_to_string(v_quoted[:v_first - 1], ' | '), ''), null,
                        _top_chunks.must, v_query, _top_chunks.collection_id,
                        _top_chunks.filter, _top_chunks.facets, _top_chunks.depth
                    ) as s
                ) as a
                order by a.score desc, a.chunk_id
                limit _top_chunks.depth
            ) as b;
        end if;
        v_round := v_round + 1;
        if rag._is_traced() then
            perform rag._note(format('round %s', v_round), jsonb_build_object(
                'lexemes', v_quoted[v_first:v_last], 'matches', v_matches,
                'query', '(' || nullif(array_to_string(v_parts, ') | ('), '') || ')',
                'without', nullif(array_to_string(v_quoted[:v_first - 1], ' | '), ''),
                'listed', coalesce(cardinality(chunk_ids), 0),
                'threshold', scores[_top_chunks.depth]
            ));
        end if;
        v_first := v_last + 1;
        v_budget := greatest(v_budget, v_matches) * 4;
    end loop;
end
$$;

comment on function rag._top_chunks(
    int, int, text[], double precision[], double precision[], double precision[], tsquery, int,
    jsonpath, text[], double precision, int, bigint[], int
) is 'The best chunks by stored weights, exactly, without scoring all that match; best first.';

create or replace function rag._rescore(
    tenant_id int,
    partition_id int,
    chunks bigint[],
    lexemes text[],
    idfs double precision[],
    mean_length double precision,
    reference_length double precision
)
    returns table (chunk_id bigint, score double precision)
    language plpgsql
    stable
    parallel restricted
    security invoker
    rows 100
    set search_path = pg_catalog, public, pg_temp
    -- It plans nothing that reads a partition.
    set plan_cache_mode = force_generic_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    -- One axis for each word: the product with it is the word's weight.
    v_axes sparsevec[] := array(
        select ('{' || rag._lexeme_dimension(g.lexeme) || ':1}/1000000000')::sparsevec
        from unnest(_rescore.lexemes) with ordinality as g (lexeme, place)
        order by g.place
    );
    v_found record;
begin
    -- rag.explain asks for as many chunks as it takes.
    if cardinality(_rescore.chunks) > 10000 then
        for n in 0..cardinality(_rescore.chunks) / 10000 loop
            return query
            select s.chunk_id, s.score
            from rag._rescore(
                _rescore.tenant_id, _rescore.partition_id,
                _rescore.chunks[n * 10000 + 1:(n + 1) * 10000], _rescore.lexemes, _rescore.idfs,
                _rescore.mean_length, _rescore.reference_length
            ) as s;
        end loop;
        return;
    end if;
    -- Of the partition, which has to be planned each time, the rows alone: with the sum in there
    -- planning took 0.25 ms, more than the sum.
    execute format(
        'select array_agg(l.chunk_id) as chunks, array_agg(l.weights) as weights, '
        'array_agg(l.length) as lengths, array_agg(l.k1) as k1s, array_agg(l.b) as bs '
        'from rag_data.lexemes_p%s as l where l.tenant_id = $1 and l.chunk_id = any($2)',
        _rescore.partition_id
    )
    into v_found
    using _rescore.tenant_id, _rescore.chunks;
    return query
    select l.chunk_id, s.score
    from unnest(v_found.chunks, v_found.weights, v_found.lengths, v_found.k1s, v_found.bs)
        as l (chunk_id, weights, length, k1, b)
    cross join lateral (
        -- f from the stored weight, then the weight of f at today's mean length. Words are added in
        -- the order given, whatever the plan: the last bit of a score would tell what others have
        -- put into the partition. Chunk by chunk that takes half the time of a join and a group.
        select
            sum(f.idf * f.frequency * (l.k1 + 1) / (
                f.frequency + l.k1 * (1 - l.b + l.b * l.length / _rescore.mean_length)
            )) as score
        from (
            select
                w.idf,
                w.weight * l.k1 * (1 - l.b + l.b * l.length / _rescore.reference_length)
                / (l.k1 + 1 - w.weight) as frequency
            from (
                select t.idf, -(l.weights <#> t.axis) as weight
                from unnest(v_axes, _rescore.idfs) as t (axis, idf)
                offset 0
            ) as w
            where w.weight > 0
            offset 0
        ) as f
    ) as s
    where s.score is not null;
end
$$;

comment on function rag._rescore(
    int, int, bigint[], text[], double precision[], double precision, double precision
) is 'BM25 of chunks at today''s mean length, whatever length their stored weights were made for.';

create or replace function rag._lexical_lists(
    tenant_id int,
    partition_id int,
    query text,
    collection_id int,
    filter jsonpath,
    depth int,
    within bigint[],
    facets text[],
    share double precision,
    posting_generation int,
    out chunk_ids bigint[],
    out scores double precision[],
    out standards double precision[]
)
    returns record
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_terms record;
    v_top record;
    v_drift double precision;
    v_depth int := _lexical_lists.depth;
begin
    v_terms := rag._query_terms(
        _lexical_lists.tenant_id, _lexical_lists.collection_id, _lexical_lists.query
    );
    if v_terms.terms is null then
        return;
    end if;
    if rag._is_traced() then perform rag._note('lexemes', to_jsonb(v_terms)); end if;
    -- A weight never changes by more than the mean length does, so neither does a score.
    v_drift := exp(abs(ln(v_terms.mean_length / v_terms.reference_length)));
    if v_terms.chunks <= 1000 then
        -- Few enough to score every match, and the mean length still changes with each.
        v_depth := 1000;
    elsif v_drift > 1.001 then
        -- At a quarter of a percent 5 and 6 % more than wanted: the last scores of a list are some
        -- tenths of a percent apart, and too few cost a second time.
        v_depth := v_depth + 5 + ceil(v_depth * least(0.25, 25 * (v_drift - 1)))::int;
    end if;
    loop
        v_top := rag._top_chunks(
            _lexical_lists.tenant_id, _lexical_lists.partition_id, v_terms.terms, v_terms.counts,
            v_terms.idfs, v_terms.bounds, v_terms.must, _lexical_lists.collection_id,
            _lexical_lists.filter, _lexical_lists.facets, _lexical_lists.share, v_depth,
            _lexical_lists.within, _lexical_lists.posting_generation
        );
        select
            array_agg(s.chunk_id order by s.score desc, s.chunk_id),
            array_agg(s.score order by s.score desc, s.chunk_id)
        into chunk_ids, scores
        from rag._rescore(
            _lexical_lists.tenant_id, _lexical_lists.partition_id, v_top.chunk_ids, v_terms.terms,
            v_terms.idfs, v_terms.mean_length, v_terms.reference_length
        ) as s;
        -- What is not in the list scores at most v_drift times its last stored score. Should
        -- that still be enough to get in, a longer list is needed.
        exit when coalesce(cardinality(v_top.chunk_ids), 0) < v_depth
            or scores[_lexical_lists.depth] >= v_top.scores[v_depth] * v_drift
            or v_drift <= 1.001;
        v_depth := v_depth * 2;
    end loop;
    chunk_ids := chunk_ids[:_lexical_lists.depth];
    scores := scores[:_lexical_lists.depth];
    -- A lone chunk, or all of them alike, deviate by nothing.
    standards := nullif(array(
        select coalesce(g.score / nullif(v_terms.deviation, 0), 1)
        from unnest(scores) with ordinality as g (score, place)
        order by g.place
    ), '{}');
end
$$;

comment on function rag._lexical_lists(
    int, int, text, int, jsonpath, int, bigint[], text[], double precision, int
) is
    'The tenant''s best chunks by BM25 with his own statistics; standards are the scores in '
    'standard deviations of the scores of all his chunks. within are the chunks that meet filter, '
    'collection and phrases, if it is known that they are few; facets are what every chunk that '
    'counts has one of, each; share is about how many of his chunks do; posting_generation are his '
    'posting lists (tenants.posting_generation), null if he has none.';

create or replace function rag._lexical_leg(
    tenant_id int,
    partition_id int,
    query text,
    collection_id int,
    filter jsonpath,
    depth int
)
    returns table (chunk_id bigint, score double precision, standard double precision)
    language plpgsql
    stable
    parallel restricted
    security invoker
    rows 100
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_lists record;
begin
    v_lists := rag._lexical_lists(
        _lexical_leg.tenant_id, _lexical_leg.partition_id, _lexical_leg.query,
        _lexical_leg.collection_id, _lexical_leg.filter, _lexical_leg.depth, null, null, 1,
        (
            select t.posting_generation
            from rag.tenants as t
            where t.tenant_id = _lexical_leg.tenant_id
        )
    );
    return query
    select g.chunk_id, g.score, g.standard
    from unnest(v_lists.chunk_ids, v_lists.scores, v_lists.standards)
        as g (chunk_id, score, standard);
end
$$;

comment on function rag._lexical_leg(int, int, text, int, jsonpath, int) is
    'The tenant''s best chunks by BM25 as rows, best first; see rag._lexical_lists.';
