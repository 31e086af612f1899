-- The lexical index: what the lexical leg searches, and the statistics that BM25 needs.

create or replace function rag._lexeme_dimension(lexeme text)
    returns int
    language sql
    immutable
    parallel safe
    security invoker
-- 999,999,999 of the 10^9 dimensions of a sparsevec. In a vocabulary of 500,000 a given lexeme
-- shares its dimension with another one with a chance of 1 in 2,000.
return (1 + (hashtextextended(lexeme, 0) & 9223372036854775807) % 999999999)::int;

comment on function rag._lexeme_dimension(text) is
    'The dimension of sparsevec that holds the weight of a lexeme.';

create or replace function rag._fold_accents(content text)
    returns text
    language sql
    immutable
    parallel safe
    security invoker
-- Decomposed, an accented letter is the letter and a combining mark, which is left out. Text of
-- one byte a character has none; asking that is 20 times cheaper.
return case
    when octet_length(content) = length(content) then content
    else regexp_replace(normalize(content, nfd), U&'[\0300-\036F]', '', 'g')
end;

comment on function rag._fold_accents(text) is
    'The text without accents, so that canción is found by cancion and the other way round.';

create or replace function rag._lexemes(language text, content text)
    returns tsvector
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- Called for each chunk by functions that force custom plans: that would plan it each time.
    set plan_cache_mode = auto
as $$
declare
    v_config regconfig := _lexemes.language::regconfig;
    -- Letters and digits joined by what joins identifiers: ERR_404, node.js, a@b.org, C++, C#.
    v_identifier constant text := '[A-Za-z0-9]+(?:[_.@/+#:-]+[A-Za-z0-9]+)+[+#]*|[A-Za-z0-9]+[+#]+';
    v_text text := rag._fold_accents(_lexemes.content);
    v_lexemes tsvector := to_tsvector(v_config, _lexemes.content);
begin
    if v_text = '' then
        return v_lexemes;
    end if;
    -- Stemmed first, because a stemmer knows endings by their accents (devolución, devoluciones),
    -- then without accents. What a writer without accents would be found by comes on top.
    if v_text <> _lexemes.content then
        v_lexemes := rag._fold_accents(v_lexemes::text)::tsvector;
        v_lexemes := v_lexemes || rag._new_lexemes(
            v_lexemes, tsvector_to_array(to_tsvector(v_config, v_text))
        );
    end if;
    -- Postgres' parser takes node.js for the name of a host, and C++ for C. What holds a letter
    -- is found whole and by each of its parts, v1.2 by 1.2 too.
    if v_text ~ '[A-Za-z0-9][_.@/+#:][A-Za-z0-9+#]' then
        v_lexemes := v_lexemes || rag._new_lexemes(v_lexemes, array(
            select p.part
            from regexp_matches(v_text, v_identifier, 'g') as m (token)
            cross join lateral (select lower(m.token[1]) as token) as t
            cross join lateral (
                select t.token as part
                union
                select s.part from regexp_split_to_table(t.token, '[_.@/+#:-]+') as s (part)
                union
                select substr(t.token, 2) where t.token ~ '^v[0-9]'
            ) as p
            where t.token ~ '[a-z]' and length(t.token) <= 200 and p.part <> ''
        ));
    end if;
    return v_lexemes;
end
$$;

comment on function rag._lexemes(text, text) is
    'The lexemes that a text is found by: words stemmed as the language has it, without accents; '
    'identifiers whole and by part. What is there in second place only has no position.';

create or replace function rag._new_lexemes(known tsvector, found text[])
    returns tsvector
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select ts_delete(array_to_tsvector(found), tsvector_to_array(known))
$$;

comment on function rag._new_lexemes(tsvector, text[]) is
    'Those of the found lexemes that are not known yet, without positions.';

create or replace function rag._labelled_frequency(
    labels text[], title_weight real, heading_weight real, enrich_weight real
)
    returns double precision
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select sum(
        case l.label
            when 'A' then title_weight
            when 'B' then heading_weight
            when 'C' then enrich_weight
            else 1
        end
    )
    from unnest(labels) as l (label)
$$;

comment on function rag._labelled_frequency(text[], real, real, real) is
    'Occurrences of a lexeme, each with the weight of the place where it stands.';

create or replace function rag._frequency(
    positions smallint[],
    labels text[],
    title_weight real,
    heading_weight real,
    enrich_weight real
)
    returns double precision
    language sql
    immutable
    parallel safe
    security invoker
-- What has no position is there in second place only, and counts once. The sum is apart, because
-- with a sub-select in it this could not be inlined, and 100 µs a lexeme is a lot.
return case
    when positions is null then 1
    when title_weight = 1 and heading_weight = 1 and enrich_weight = 1 then cardinality(positions)
    else rag._labelled_frequency(labels, title_weight, heading_weight, enrich_weight)
end;

comment on function rag._frequency(smallint[], text[], real, real, real) is
    'How often a chunk has a lexeme: in a title, a heading or metadata that are searched with the '
    'text it counts what the collection says.';

create or replace function rag._enriched_text(metadata jsonb, uri text, enrich text[])
    returns text
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select string_agg(v.content, ' ' order by e.place)
    from unnest(enrich) with ordinality as e (key, place)
    cross join lateral (
        -- As it is and as words, so that each part counts as a word does.
        select f.name || ' ' || regexp_replace(f.name, '[_.@+#:-]+', ' ', 'g') as content
        from (select regexp_replace(regexp_replace(uri, '[?#].*$', ''), '^.*[/\\]', '')) as f (name)
        where e.key = '$file_name'
        union all
        select string_agg(x.item #>> '{}', ' ' order by x.place)
        from jsonb_path_query(metadata -> e.key, 'strict $.**') with ordinality as x (item, place)
        where jsonb_typeof(x.item) in ('string', 'number') and e.key <> '$file_name'
    ) as v
$$;

comment on function rag._enriched_text(jsonb, text, text[]) is
    'What is searched with the text: the values of those keys of the metadata, and for $file_name '
    'the last part of the uri.';

create or replace function rag._most_frequent(lexemes tsvector)
    returns tsvector
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    -- As many as a sparsevec has room for.
    select ts_delete(lexemes, array(
        select u.lexeme
        from unnest(lexemes) as u
        order by coalesce(cardinality(u.positions), 0) desc, u.lexeme
        offset 16000
    ))
$$;

comment on function rag._most_frequent(tsvector) is 'The 16,000 lexemes that come most often.';

create or replace function rag._weights_by_dimension(weights sparsevec)
    returns jsonb
    language sql
    immutable
    parallel safe
    security invoker
-- {1:0.5,2:0.7}/1000000000 is {"1":0.5,"2":0.7}. By a pattern it would take three times as long.
return case
    when weights = '{}/1000000000' then '{}'
    else '{"' || replace(
        replace(substr(split_part(weights::text, '/', 1), 2), ':', '":'), ',', ',"'
    )
end::jsonb;

comment on function rag._weights_by_dimension(sparsevec) is
    'Stored weights as an object, by dimension.';

create or replace function rag._weight(
    frequency double precision, relative_length double precision, k1 real, b real
)
    returns real
    language sql
    immutable
    parallel safe
    security invoker
return (frequency * (k1 + 1) / (frequency + k1 * (1 - b + b * relative_length)))::real;

comment on function rag._weight(double precision, double precision, real, real) is
    'The BM25 weight of a lexeme in a chunk of that length relative to the mean.';

create or replace function rag._index_chunks(tenant_id int, partition_id int, chunks bigint[])
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_reference real;
    v_is_first boolean := false;
begin
    perform rag._unindex_chunks(
        _index_chunks.tenant_id, _index_chunks.partition_id, _index_chunks.chunks
    );
    -- It does not change meanwhile: who writes has locked the tenant against rag._reweigh.
    select s.reference_length into v_reference
    from rag.lexical_statistics as s
    where s.tenant_id = _index_chunks.tenant_id;
    -- A tenant's first chunks tell better than a guess, if nobody else is writing yet.
    if (rag._lexical_totals(_index_chunks.tenant_id)).chunks = 0 then
        perform
        from rag.tenants as t
        where t.tenant_id = _index_chunks.tenant_id
        for update skip locked;
        v_is_first := found;
    end if;

    -- Chunk by chunk, without a join between sets of them: in a new database the planner takes
    -- every set for small, and its nested loops made 50 MB of text a matter of an hour.
    with
    texts as materialized (
        select
            c.chunk_id,
            c.collection_id,
            n.k1,
            n.b,
            n.title_weight,
            n.heading_weight,
            n.enrich_weight,
            n.index_version,
            x.lexemes,
            l.length
        from rag.chunks as c
        join rag.documents as d
            on d.tenant_id = _index_chunks.tenant_id and d.document_id = c.document_id
        join rag.collections as n
            on n.tenant_id = _index_chunks.tenant_id and n.collection_id = c.collection_id
        cross join lateral (
            select
                setweight(rag._lexemes(d.language, coalesce(d.title, '')), 'A')
                || setweight(rag._lexemes(d.language, array_to_string(c.heading_path, ' ')), 'B')
                || case
                    when n.enrich = '{}' then ''
                    else setweight(
                        rag._lexemes(
                            d.language,
                            coalesce(rag._enriched_text(c.metadata, d.uri, n.enrich), '')
                        ),
                        'C'
                    )
                end
                || rag._lexemes(d.language, c.content) as found
            -- Or it would be computed again wherever it is named.
            offset 0
        ) as f
        cross join lateral (
            select
                case when length(f.found) <= 16000 then f.found else rag._most_frequent(f.found) end
                as lexemes
            offset 0
        ) as x
        cross join lateral (
            select
                coalesce(sum(
                    rag._frequency(
                        u.positions, u.weights, n.title_weight, n.heading_weight, n.enrich_weight
                    )
                ), 0) as length
            from unnest(x.lexemes) as u
        ) as l
        where
            c.partition_id = _index_chunks.partition_id
            and c.tenant_id = _index_chunks.tenant_id
            and c.chunk_id = any(_index_chunks.chunks)
    ),
    reference as materialized (
        select
            (case when v_is_first then avg(nullif(t.length, 0)) end)::real as found_length,
            count(*) as chunks
        from texts as t
    ),
    settled as (
        update rag.lexical_statistics as s
        set reference_length = r.found_length, is_settled = r.chunks >= 1000
        from reference as r
        where s.tenant_id = _index_chunks.tenant_id and r.found_length is not null
    ),
    indexed as (
        insert into rag.lexemes (
            partition_id, tenant_id, chunk_id, collection_id, length, lexemes, weights, k1, b,
            index_version
        )
        select
            _index_chunks.partition_id, _index_chunks.tenant_id, t.chunk_id, t.collection_id,
            t.length, t.lexemes, coalesce(v.weights, '{}/1000000000'), t.k1, t.b, t.index_version
        from texts as t
        cross join reference as r
        cross join lateral (
            select
                (
                    '{' || string_agg(w.dimension || ':' || w.weight, ',') || '}/1000000000'
                )::sparsevec as weights
            from (
                select
                    rag._lexeme_dimension(u.lexeme) as dimension,
                    max(rag._weight(
                        rag._frequency(
                            u.positions, u.weights, t.title_weight, t.heading_weight,
                            t.enrich_weight
                        ),
                        t.length / coalesce(r.found_length, v_reference), t.k1, t.b
                    )) as weight
                from unnest(t.lexemes) as u
                group by rag._lexeme_dimension(u.lexeme)
            ) as w
            where w.weight > 0
        ) as v
        order by t.chunk_id
    ),
    terms as materialized (
        select
            u.lexeme,
            rag._frequency(
                u.positions, u.weights, t.title_weight, t.heading_weight, t.enrich_weight
            ) as frequency,
            t.length / coalesce(r.found_length, v_reference) as relative_length,
            t.k1,
            t.b
        from texts as t
        cross join reference as r
        cross join lateral unnest(t.lexemes) as u
    ),
    weighted as materialized (
        select t.lexeme, rag._weight(t.frequency, t.relative_length, t.k1, t.b) as weight
        from terms as t
        where t.frequency > 0
    ),
    counted as (
        select
            w.lexeme,
            count(*)::int as chunks,
            max(w.weight) as max_weight,
            sum(w.weight) as sum_weight,
            sum(w.weight * w.weight) as sum_square
        from weighted as w
        group by w.lexeme
    )
    insert into rag.lexeme_deltas (
        tenant_id, chunks, total_length, size, lexemes, counts, max_weights, sum_weights,
        sum_squares
    )
    select
        _index_chunks.tenant_id,
        (select count(*) from texts),
        (select sum(t.length) from texts as t),
        count(*),
        coalesce(array_agg(c.lexeme), '{}'),
        coalesce(array_agg(c.chunks), '{}'),
        coalesce(array_agg(c.max_weight), '{}'),
        coalesce(array_agg(c.sum_weight), '{}'),
        coalesce(array_agg(c.sum_square), '{}')
    from counted as c
    having exists (select from texts);
end
$$;

comment on function rag._index_chunks(int, int, bigint[]) is
    'Index chunks anew: their lexemes, their BM25 weights, and what they change in the statistics.';

create or replace function rag._unindex_chunks(tenant_id int, partition_id int, chunks bigint[])
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
begin
    with
    gone as (
        delete from rag.lexemes as l
        where
            l.partition_id = _unindex_chunks.partition_id
            and l.tenant_id = _unindex_chunks.tenant_id
            and l.chunk_id = any(_unindex_chunks.chunks)
        returning l.lexemes, l.length, l.weights
    ),
    -- By the weights that are stored, whatever settings they were made with: just what was added
    -- to the statistics is taken away. (Of two lexemes of a chunk that share a dimension the
    -- greater weight counts for both; that is rarer than one chunk in 100,000.)
    weighted as materialized (
        select u.lexeme, w.weight
        from gone as g
        cross join lateral (
            select rag._weights_by_dimension(g.weights) as by_dimension
            offset 0
        ) as o
        cross join lateral unnest(g.lexemes) as u
        cross join lateral (
            select (o.by_dimension ->> rag._lexeme_dimension(u.lexeme)::text)::real as weight
        ) as w
        where w.weight is not null
    ),
    counted as (
        select
            w.lexeme,
            count(*)::int as chunks,
            sum(w.weight) as sum_weight,
            sum(w.weight * w.weight) as sum_square
        from weighted as w
        group by w.lexeme
    ),
    summed as (
        select count(*) as chunks, sum(g.length) as length from gone as g
    )
    insert into rag.lexeme_deltas (
        tenant_id, chunks, total_length, size, lexemes, counts, max_weights, sum_weights,
        sum_squares
    )
    select
        _unindex_chunks.tenant_id,
        -s.chunks,
        -s.length,
        (select count(*) from counted),
        coalesce((select array_agg(c.lexeme order by c.lexeme) from counted as c), '{}'),
        coalesce((select array_agg(-c.chunks order by c.lexeme) from counted as c), '{}'),
        coalesce((select array_agg(0::real) from counted), '{}'),
        coalesce((select array_agg(-c.sum_weight order by c.lexeme) from counted as c), '{}'),
        coalesce((select array_agg(-c.sum_square order by c.lexeme) from counted as c), '{}')
    from summed as s
    where s.chunks > 0;
end
$$;

comment on function rag._unindex_chunks(int, int, bigint[]) is
    'Take chunks out of the lexical index and of its statistics.';

create or replace function rag._fold_statistics(
    tenant_id int, partition_id int, at_least int default 5000
)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_lexemes bigint;
    v_rows bigint;
    v_is_settled boolean;
begin
    -- A search adds up what is not taken in: 5,000 lexemes cost it about half a millisecond.
    select sum(d.size), count(*) into v_lexemes, v_rows
    from rag.lexeme_deltas as d
    where d.tenant_id = _fold_statistics.tenant_id;
    if v_rows = 0
        or (v_lexemes < _fold_statistics.at_least and v_rows < _fold_statistics.at_least / 50)
        -- Not in a transaction that could not see what another one has taken in meanwhile.
        or current_setting('transaction_isolation') <> 'read committed'
    then
        return 0;
    end if;
    -- One at a time; whoever comes second leaves it to the first. No advisory lock, which any role
    -- could take and keep.
    perform
    from rag.lexical_statistics as s
    where s.tenant_id = _fold_statistics.tenant_id
    for update skip locked;
    if not found then
        return 0;
    end if;
    with
    taken as (
        delete from rag.lexeme_deltas as d
        where d.tenant_id = _fold_statistics.tenant_id
        returning
            d.chunks, d.total_length, d.lexemes, d.counts, d.max_weights, d.sum_weights,
            d.sum_squares
    ),
    totals as (
        update rag.lexical_statistics as s
        set
            chunks = s.chunks + t.chunks,
            total_length = s.total_length + t.total_length
        from (
            select sum(x.chunks) as chunks, sum(x.total_length) as total_length from taken as x
        ) as t
        where s.tenant_id = _fold_statistics.tenant_id
    ),
    summed as (
        select
            u.lexeme,
            sum(u.chunks)::int as chunks,
            max(u.max_weight) as max_weight,
            sum(u.sum_weight::double precision) as sum_weight,
            sum(u.sum_square::double precision) as sum_square
        from taken as t
        cross join lateral unnest(
            t.lexemes, t.counts, t.max_weights, t.sum_weights, t.sum_squares
        ) as u (lexeme, chunks, max_weight, sum_weight, sum_square)
        group by u.lexeme
    )
    insert into rag.lexeme_statistics as s (
        tenant_id, lexeme, chunks, max_weight, sum_weight, sum_square
    )
    select
        _fold_statistics.tenant_id, m.lexeme, m.chunks, m.max_weight, m.sum_weight, m.sum_square
    from summed as m
    on conflict on constraint lexeme_statistics_pkey
    do update set
        chunks = s.chunks + excluded.chunks,
        max_weight = greatest(s.max_weight, excluded.max_weight),
        sum_weight = s.sum_weight + excluded.sum_weight,
        sum_square = s.sum_square + excluded.sum_square;

    -- A new tenant's reference length is a guess: weigh anew, once, when 1,000 chunks tell better.
    -- That takes half a second.
    update rag.lexical_statistics as s
    set is_settled = true
    where
        s.tenant_id = _fold_statistics.tenant_id and s.chunks >= 1000 and not s.is_settled
    returning true into v_is_settled;
    if v_is_settled then
        perform rag._reweigh(_fold_statistics.tenant_id, _fold_statistics.partition_id);
    end if;
    return v_lexemes;
end
$$;

comment on function rag._fold_statistics(int, int, int) is
    'Take the tenant''s deltas into its statistics once they have that many lexemes; returns how '
    'many were taken in.';

create or replace function rag._reweigh(tenant_id int, partition_id int)
    returns boolean
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
#variable_conflict use_column
begin
    -- Only while nobody else is writing for this tenant (all who do hold a key share lock of its
    -- row, see rag._lock_tenant); otherwise the next one tries again.
    perform from rag.tenants as t where t.tenant_id = _reweigh.tenant_id for update skip locked;
    if not found then
        update rag.lexical_statistics as s
        set is_settled = false
        where s.tenant_id = _reweigh.tenant_id;
        return false;
    end if;
    -- All of them at once are a tenant's first chunks again, whose mean length is the reference.
    perform rag._index_chunks(_reweigh.tenant_id, _reweigh.partition_id, array(
        select l.chunk_id
        from rag.lexemes as l
        where l.partition_id = _reweigh.partition_id and l.tenant_id = _reweigh.tenant_id
    ));
    return true;
end
$$;

comment on function rag._reweigh(int, int) is
    'Store the tenant''s BM25 weights anew, for the mean length of today; false if somebody is '
    'writing and it must wait.';

create or replace function rag._lexical_totals(
    tenant_id int,
    out chunks double precision,
    out mean_length double precision,
    out reference_length double precision
)
    returns record
    language sql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select
        (s.chunks + d.chunks)::double precision,
        case
            when s.chunks + d.chunks > 0
                then nullif(s.total_length + d.total_length, 0) / (s.chunks + d.chunks)
        end,
        s.reference_length
    from rag.lexical_statistics as s
    cross join (
        select
            coalesce(sum(x.chunks), 0) as chunks,
            coalesce(sum(x.total_length), 0) as total_length
        from rag.lexeme_deltas as x
        where x.tenant_id = _lexical_totals.tenant_id
    ) as d
    where s.tenant_id = _lexical_totals.tenant_id
$$;

comment on function rag._lexical_totals(int) is
    'BM25: the tenant''s number of chunks and their mean length, deltas included.';

create or replace function rag._lexeme_totals(tenant_id int, lexemes text[])
    returns table (
        lexeme text,
        chunks double precision,
        max_weight double precision,
        sum_weight double precision,
        sum_square double precision
    )
    language sql
    stable
    parallel safe
    security invoker
    rows 10
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
as $$
    select
        u.lexeme,
        sum(u.chunks)::double precision,
        max(u.max_weight)::double precision,
        sum(u.sum_weight),
        sum(u.sum_square)
    from (
        select s.lexeme, s.chunks, s.max_weight, s.sum_weight, s.sum_square
        from rag.lexeme_statistics as s
        where
            s.tenant_id = _lexeme_totals.tenant_id and s.lexeme = any(_lexeme_totals.lexemes)
        union all
        select x.lexeme, x.chunks, x.max_weight, x.sum_weight, x.sum_square
        from rag.lexeme_deltas as d
        cross join lateral unnest(
            d.lexemes, d.counts, d.max_weights, d.sum_weights, d.sum_squares
        ) as x (lexeme, chunks, max_weight, sum_weight, sum_square)
        where d.tenant_id = _lexeme_totals.tenant_id and x.lexeme = any(_lexeme_totals.lexemes)
    ) as u
    group by u.lexeme
    having sum(u.chunks) > 0
$$;

comment on function rag._lexeme_totals(int, text[]) is
    'BM25: in how many of the tenant''s chunks each lexeme is, the greatest of its stored weights, '
    'their sum and that of their squares; deltas included, lexemes in no chunk left out.';

-- Indexing anew after a change of settings --------------------------------------------------------

create or replace function rag._reindex_batch(
    tenant_id int, partition_id int, collection_id int, batch int
)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_custom_plan
    set jit = off
as $$
#variable_conflict use_column
declare
    v_collection rag.collections;
    v_chunks bigint[];
    v_to bigint;
begin
    -- One at a time; puts, whose foreign keys only share the row, go on.
    select n.* into v_collection
    from rag.collections as n
    where
        n.tenant_id = _reindex_batch.tenant_id
        and n.collection_id = _reindex_batch.collection_id
    for no key update;
    if v_collection.reindexed_to is null then
        return 0;
    end if;
    v_chunks := array(
        select l.chunk_id
        from rag.lexemes as l
        where
            l.partition_id = _reindex_batch.partition_id
            and l.tenant_id = _reindex_batch.tenant_id
            and l.chunk_id > v_collection.reindexed_to
            and l.collection_id = _reindex_batch.collection_id
            and l.index_version <> v_collection.index_version
        order by l.chunk_id
        limit _reindex_batch.batch
    );
    if cardinality(v_chunks) = _reindex_batch.batch then
        v_to := v_chunks[_reindex_batch.batch];
    end if;
    -- Whoever writes a document holds its row: no chunk is indexed by two at once, nor after it was
    -- deleted. In the order in which rag.put_many takes them.
    perform
    from rag.documents as d
    where
        d.tenant_id = _reindex_batch.tenant_id
        and d.document_id in (
            select c.document_id
            from rag.chunks as c
            where
                c.partition_id = _reindex_batch.partition_id
                and c.tenant_id = _reindex_batch.tenant_id
                and c.chunk_id = any(v_chunks)
        )
    order by d.uri
    for update;
    v_chunks := array(
        select c.chunk_id
        from rag.chunks as c
        where
            c.partition_id = _reindex_batch.partition_id
            and c.tenant_id = _reindex_batch.tenant_id
            and c.chunk_id = any(v_chunks)
    );
    perform rag._index_chunks(_reindex_batch.tenant_id, _reindex_batch.partition_id, v_chunks);
    update rag.collections as n
    set reindexed_to = v_to
    where
        n.tenant_id = _reindex_batch.tenant_id
        and n.collection_id = _reindex_batch.collection_id;
    if v_to is null then
        perform rag._forget_languages(_reindex_batch.tenant_id, v_collection);
    end if;
    perform rag._fold_statistics(_reindex_batch.tenant_id, _reindex_batch.partition_id);
    return cardinality(v_chunks);
end
$$;

comment on function rag._reindex_batch(int, int, int, int) is
    'Index up to so many of the chunks anew that were indexed with other settings than their '
    'collection has now; returns how many.';

create or replace function rag._forget_languages(tenant_id int, collection rag.collections)
    returns void
    language plpgsql
    volatile
    parallel unsafe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
begin
    -- Only while nobody is writing, who might be using one; it does no harm to keep it.
    perform
    from rag.tenants as t
    where t.tenant_id = _forget_languages.tenant_id
    for update skip locked;
    if found then
        delete from rag.collection_languages as l
        where
            l.tenant_id = _forget_languages.tenant_id
            and l.collection_id = (_forget_languages.collection).collection_id
            and l.language <> (_forget_languages.collection).language
            and not exists (
                select
                from rag.documents as d
                where
                    d.tenant_id = _forget_languages.tenant_id
                    and d.collection_id = (_forget_languages.collection).collection_id
                    and d.language = l.language
            );
    end if;
end
$$;

comment on function rag._forget_languages(int, rag.collections) is
    'No longer ask in languages that no document of the collection is in any more.';

create or replace function rag.reindex(collection text default null, batch int default 2000)
    returns bigint
    language plpgsql
    volatile
    parallel unsafe
    security definer
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_column
declare
    v_context record;
    v_partition int;
    v_collection int;
begin
    perform rag._require_fresh_snapshots('indexing anew');
    if reindex.batch is null or reindex.batch not between 1 and 100000 then
        raise exception 'invalid batch' using
            errcode = 'invalid_parameter_value',
            detail = format('batch is %s.', coalesce(reindex.batch::text, 'null')),
            hint = 'A batch has 1 to 100,000 chunks.';
    end if;
    v_context := rag._context();
    if reindex.collection is not null then
        v_collection := (rag._collection(v_context.tenant_id, reindex.collection)).collection_id;
    else
        select n.collection_id into v_collection
        from rag.collections as n
        where n.tenant_id = v_context.tenant_id and n.reindexed_to is not null
        order by n.collection_id
        limit 1;
    end if;
    if v_collection is null then
        return 0;
    end if;
    perform rag._lock_tenant(v_context.tenant_id);
    -- Again under the lock: a move between partitions waits for it.
    select t.partition_id into v_partition
    from rag.tenants as t
    where t.tenant_id = v_context.tenant_id;
    return rag._reindex_batch(
        v_context.tenant_id, v_partition, v_collection, reindex.batch
    );
end
$$;

comment on function rag.reindex(text, int) is
    'After rag.alter_collection: index the next batch of chunks by the new settings; returns how '
    'many there were, 0 when it is done. Searches and puts go on meanwhile.';
