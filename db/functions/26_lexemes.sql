-- Text to lexemes, as the lexical leg stores and asks for them, and what each weighs.

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
