-- Text to chunks: functions of their arguments; only counting tokens reads a table, the vocabulary.
--
-- A strategy is an outline: rows that say where a run of text starts and ends, which headings it
-- stands under and what in it is to be kept in one piece. rag._split does the rest for all.

create or replace function rag._chunk(
    content text, strategy text, size int, overlap int, separators text[], vocabulary int
)
    returns table (
        ordinal int,
        body text,
        start_offset int,
        end_offset int,
        heading_path text[],
        start_byte int,
        end_byte int
    )
    language plpgsql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    -- A plan made for the parameters at hand would hold one more copy of the document.
    set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_variable
declare
    v_spaces constant text := rag._whitespace();
    v_text text;
    v_bytes bytea;
    v_start_byte int;
    v_end_byte int;
    v_part bytea;
    v_length int;
    v_reach int := 1000;
    v_any_heading constant text :=
        '(?n)^(?:\ufeff| {0,3})#{1,6}[ \t]|^ {0,3}(?:=+|-+)[ \t\r]*$';
    v_lead int;
    v_run record;
    v_keep_starts int[] := '{}';
    v_keep_ends int[] := '{}';
    v_unit_starts int[];
    v_unit_sums int[];
begin
    if content is null then
        return;
    end if;
    -- A stored text is compressed, and each look at it would unpack it anew: 0.2 s for 50 MB.
    content := content || '';

    -- Where the text without the white space around it lies. It is looked for in windows, because
    -- btrim() of a whole text takes 12 bytes of memory per character.
    v_length := length(content);
    loop
        v_text := ltrim(left(content, v_reach), v_spaces);
        exit when v_text <> '' or v_reach >= v_length;
        v_reach := v_reach * 8;
    end loop;
    if v_text = '' then
        return;
    end if;
    start_offset := least(v_reach, v_length) - length(v_text);
    v_reach := 1000;
    loop
        v_text := rtrim(right(content, v_reach), v_spaces);
        exit when v_text <> '';
        v_reach := v_reach * 8;
    end loop;
    end_offset := v_length - least(v_reach, v_length) + length(v_text);
    ordinal := 0;
    heading_path := '{}';

    if strategy = 'none'
        or end_offset - start_offset <= size
        -- A token has a character at least.
        and (strategy <> 'markdown' or content !~ v_any_heading)
    then
        body := substr(content, start_offset + 1, end_offset - start_offset);
        start_byte := octet_length(left(content, start_offset));
        end_byte := start_byte + octet_length(body);
        return next;
        return;
    end if;

    v_bytes := convert_to(content, 'UTF8');
    v_start_byte := octet_length(left(content, start_offset));
    v_end_byte := octet_length(v_bytes) - octet_length(right(content, v_length - end_offset));
    if strategy = 'sentence' then
        select
            coalesce(array_agg(s.start_offset order by s.start_offset), '{}'),
            coalesce(array_agg(s.end_offset order by s.start_offset), '{}')
        into v_keep_starts, v_keep_ends
        from rag._sentences(content) as s
        where s.end_offset - s.start_offset <= size;
    elsif strategy = 'code' then
        select k.starts, k.ends into v_keep_starts, v_keep_ends
        from rag._code_blocks(content, size) as k;
    elsif strategy = 'token' then
        select u.starts, u.sums into v_unit_starts, v_unit_sums
        from rag._token_units(content, vocabulary) as u;
    end if;
    for v_run in
        select
            start_offset as start_offset,
            end_offset as end_offset,
            v_start_byte as start_byte,
            v_end_byte as end_byte,
            '{}'::text[] as heading_path,
            null::int as next_offset,
            null::text[] as next_path,
            v_keep_starts as keep_starts,
            v_keep_ends as keep_ends,
            array_fill(strategy = 'code', array[cardinality(v_keep_starts)]) as keep_lines
        where strategy <> 'markdown'
        union all
        select o.*
        from rag._markdown_outline(content, size) as o
        where strategy = 'markdown'
    loop
        -- A variable of its own, because a query that a loop reads from copies its parameters: of
        -- v_bytes it would copy the whole document for every run.
        v_part := substr(v_bytes, v_run.start_byte + 1, v_run.end_byte - v_run.start_byte);
        if v_run.end_offset - v_run.start_offset <= size and strategy <> 'token' then
            v_text := convert_from(v_part, 'UTF8');
            body := ltrim(v_text, v_spaces);
            start_offset := v_run.start_offset + length(v_text) - length(body);
            v_lead := octet_length(v_text) - octet_length(body);
            body := rtrim(body, v_spaces);
            end_offset := start_offset + length(body);
            start_byte := v_run.start_byte + v_lead;
            end_byte := start_byte + octet_length(body);
            heading_path := v_run.heading_path;
            return next;
            ordinal := ordinal + 1;
            continue;
        end if;
        for start_offset, end_offset, start_byte, end_byte, body in
            select
                p.start_offset, p.end_offset, v_run.start_byte + p.start_byte,
                v_run.start_byte + p.end_byte, p.body
            from rag._split(
                v_part,
                v_run.start_offset,
                v_run.end_offset,
                v_run.keep_starts,
                v_run.keep_ends,
                v_run.keep_lines,
                size,
                overlap,
                strategy = 'code',
                strategy = 'sentence',
                separators,
                v_unit_starts,
                v_unit_sums
            ) as p
        loop
            -- A chunk has the headings of its middle.
            heading_path := case
                when (start_offset + end_offset) / 2 >= v_run.next_offset then v_run.next_path
                else v_run.heading_path
            end;
            return next;
            ordinal := ordinal + 1;
        end loop;
    end loop;
end
$$;

comment on function rag._chunk(text, text, int, int, text[], int) is
    'rag.chunk with checked settings and before small chunks are merged, under column names that '
    'PL/pgSQL can tell from the parameters; bytes are places in the text as UTF-8.';

create or replace function rag._joined_path(
    path text[], length int, follower text[], follower_length int, min_size int
)
    returns text[]
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select case
        when length >= min_size and follower_length < min_size then path
        when length < min_size and follower_length >= min_size then follower
        else (
            select path[:coalesce(max(n), 0)]
            from generate_series(1, least(cardinality(path), cardinality(follower))) as n
            where path[:n] = follower[:n]
        )
    end
$$;

comment on function rag._joined_path(text[], int, text[], int, int) is
    'The headings of two chunks that are merged: those of the one that is no small one, or else '
    'what both begin with.';

create or replace function rag._merged_chunks(
    content text,
    strategy text,
    size int,
    overlap int,
    separators text[],
    vocabulary int,
    min_size int
)
    returns table (
        ordinal int,
        body text,
        start_offset int,
        end_offset int,
        heading_path text[]
    )
    language plpgsql
    stable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_variable
declare
    v_most constant int := size + size / 2;
    v_is_token constant boolean := strategy = 'token';
    v_bytes bytea;
    v_chunk record;             -- the one that has just come
    v_held record;              -- the one before it
    v_has_held boolean := false;
    v_done record;              -- the one before that: a small v_held may yet go to it
    v_has_done boolean := false;
    v_length int;
begin
    v_bytes := convert_to(content, 'UTF8');
    ordinal := 0;
    for v_chunk in
        select
            c.start_offset,
            c.end_offset,
            c.start_byte,
            c.end_byte,
            c.heading_path,
            case
                when v_is_token then rag._count_tokens(c.body, vocabulary)
                else c.end_offset - c.start_offset
            end as length
        from rag._chunk(content, strategy, size, overlap, separators, vocabulary) as c
        union all
        select null, null, null, null, null, null
    loop
        if not v_has_held then
            v_held := v_chunk;
            v_has_held := true;
            continue;
        end if;
        -- A small chunk goes to what stands under the same headings before it; or else to what
        -- follows it; or else to what is before it.
        v_length := case
            when v_is_token then v_held.length + v_chunk.length
            else v_chunk.end_offset - v_held.start_offset
        end;
        if v_length <= v_most
            and (
                v_held.length < min_size
                or v_chunk.length < min_size
                and rag._are_near(v_held.heading_path, v_chunk.heading_path)
            )
        then
            v_held.heading_path := rag._joined_path(
                v_held.heading_path, v_held.length, v_chunk.heading_path, v_chunk.length, min_size
            );
            v_held.end_offset := v_chunk.end_offset;
            v_held.end_byte := v_chunk.end_byte;
            v_held.length := v_length;
            continue;
        end if;
        if v_has_done then
            v_length := case
                when v_is_token then v_done.length + v_held.length
                else v_held.end_offset - v_done.start_offset
            end;
            if v_held.length < min_size and v_length <= v_most then
                v_held.heading_path := rag._joined_path(
                    v_done.heading_path, v_done.length, v_held.heading_path, v_held.length,
                    min_size
                );
                v_held.start_offset := v_done.start_offset;
                v_held.start_byte := v_done.start_byte;
                v_held.length := v_length;
            else
                start_offset := v_done.start_offset;
                end_offset := v_done.end_offset;
                heading_path := v_done.heading_path;
                body := convert_from(
                    substr(v_bytes, v_done.start_byte + 1, v_done.end_byte - v_done.start_byte),
                    'UTF8'
                );
                return next;
                ordinal := ordinal + 1;
            end if;
        end if;
        v_done := v_held;
        v_has_done := v_done.start_offset is not null;
        v_held := v_chunk;
    end loop;
    if v_has_done then
        start_offset := v_done.start_offset;
        end_offset := v_done.end_offset;
        heading_path := v_done.heading_path;
        body := convert_from(
            substr(v_bytes, v_done.start_byte + 1, v_done.end_byte - v_done.start_byte), 'UTF8'
        );
        return next;
    end if;
end
$$;

comment on function rag._merged_chunks(text, text, int, int, text[], int, int) is
    'The chunks of a text, those below min_size merged with a neighbour where both together have '
    'at most one and a half times the size.';

create or replace function rag._check_chunking(
    strategy text, size int, overlap int, min_size int, separators text[]
)
    returns jsonb
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_variable
begin
    if strategy is null
        or strategy not in ('recursive', 'markdown', 'token', 'sentence', 'code', 'none')
    then
        raise exception 'unknown chunking strategy'
            using
                errcode = '22023',
                detail = format('strategy is %L', strategy),
                hint = 'The strategies are recursive, markdown, token, sentence, code and none.';
    end if;
    if size is null or size not between 50 and 100000 then
        raise exception 'chunk size out of range'
            using
                errcode = '22023',
                detail = format('size is %s', coalesce(size::text, 'null')),
                hint = 'Give a size of 50 to 100000 characters (tokens for strategy token); 500 to '
                '1000 suits most models.';
    end if;
    if overlap is null or overlap < 0 or overlap >= size / 2.0 then
        raise exception 'chunk overlap out of range'
            using
                errcode = '22023',
                detail = format('overlap is %s, size is %s', coalesce(overlap::text, 'null'), size),
                hint = 'Give an overlap of 0 or more characters, less than half of the size.';
    end if;
    if min_size is null or min_size not between 0 and size then
        raise exception 'minimum chunk size out of range'
            using
                errcode = '22023',
                detail = format(
                    'min_size is %s, size is %s', coalesce(min_size::text, 'null'), size
                ),
                hint = 'Give a minimum of 0 (nothing is merged) up to the size.';
    end if;
    if separators is not null and strategy not in ('recursive', 'token', 'code') then
        raise exception 'this strategy takes no separators'
            using
                errcode = '22023',
                detail = format('strategy is %s', strategy),
                hint = 'Separators are for recursive, token and code.';
    end if;
    if separators is not null
        and (
            cardinality(separators) not between 1 and 20
            or array_ndims(separators) <> 1
            or exists (
                select
                from unnest(separators) as s (separator)
                where
                    s.separator is null
                    or length(s.separator) not between 1 and 100
                    -- Behind a joiner or one half of a flag a character would be torn.
                    or s.separator collate "C"
                    ~ ('[\U0001f1e6-\U0001f1ff' || rag._clinging_marks() || ']')
            )
        )
    then
        raise exception 'invalid separators'
            using
                errcode = '22023',
                detail = format('separators is %L', separators),
                hint = 'Give 1 to 20 texts of 1 to 100 characters, what parts most first; none '
                'with combining marks, joiners or parts of flags.';
    end if;
    -- What is not said is left out, so that a document is not cut anew for a setting it never had.
    return jsonb_build_object('strategy', strategy, 'size', size, 'overlap', overlap)
        || case when min_size > 0 then jsonb_build_object('min_size', min_size) else '{}' end
        || case
            when separators is null then '{}'
            else jsonb_build_object('separators', separators)
        end;
end
$$;

comment on function rag._check_chunking(text, int, int, int, text[]) is
    'The settings of chunking as one value, or the error for what no text can be cut by.';

create or replace function rag.chunking_presets()
    returns table (
        preset text,
        strategy text,
        chunk_size int,
        chunk_overlap int,
        min_chunk_size int,
        separators text[]
    )
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    values
    ('documentation', 'markdown', 1500, 200, 0, null::text[]),
    ('paper', 'token', 1000, 100, 0, null),
    ('legal', 'sentence', 800, 150, 0, null),
    ('code', 'code', 2000, 300, 0, null),
    ('chat', 'sentence', 500, 50, 0, null),
    ('slides', 'markdown', 600, 100, 0, null),
    ('table', 'recursive', 1200, 0, 0, array[E'\n\n', E'\n'])
$$;

comment on function rag.chunking_presets() is
    'Settings of chunking by kind of document, for the parameter preset of puts and collections.';

create or replace function rag._separators(chunking jsonb)
    returns text[]
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select array_agg(s.separator order by s.place)
    from jsonb_array_elements_text(chunking -> 'separators')
        with ordinality as s (separator, place)
$$;

comment on function rag._separators(jsonb) is
    'The separators of chunking settings as rag._check_chunking writes them.';

create or replace function rag._chunking(
    collection rag.collections,
    preset text,
    strategy text,
    size int,
    overlap int,
    min_size int,
    separators text[]
)
    returns jsonb
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_variable
declare
    v_strategy text := coalesce((collection).strategy, 'markdown');
    v_size int := coalesce((collection).chunk_size, 800);
    v_overlap int := coalesce((collection).chunk_overlap, 100);
    v_least int := coalesce((collection).min_chunk_size, 0);
    v_separators text[] := (collection).separators;
begin
    if preset is not null then
        select p.strategy, p.chunk_size, p.chunk_overlap, p.min_chunk_size, p.separators
        into v_strategy, v_size, v_overlap, v_least, v_separators
        from rag.chunking_presets() as p
        where p.preset = _chunking.preset;
        if not found then
            raise exception 'unknown preset "%"', preset using
                errcode = 'invalid_parameter_value',
                detail = 'A preset says how a kind of document is cut.',
                hint = 'select * from rag.chunking_presets() lists them.';
        end if;
    end if;
    if strategy <> v_strategy then
        -- The others are in what the other strategy counts, or nothing that this one knows.
        v_least := 0;
        v_separators := null;
    end if;
    return rag._check_chunking(
        coalesce(strategy, v_strategy),
        coalesce(size, v_size),
        coalesce(overlap, v_overlap),
        coalesce(min_size, least(v_least, coalesce(size, v_size))),
        -- No separators: those of the strategy.
        nullif(coalesce(separators, v_separators), '{}')
    );
end
$$;

comment on function rag._chunking(
    rag.collections, text, text, int, int, int, text[]
) is
    'How to cut: what is given, else what the preset says, else the collection (null: the '
    'defaults); or the error for what does not go together.';

create or replace function rag._checked_chunks(
    content text,
    strategy text,
    size int,
    overlap int,
    min_size int,
    separators text[],
    model text
)
    returns table (
        ordinal int,
        body text,
        start_offset int,
        end_offset int,
        heading_path text[]
    )
    language plpgsql
    stable
    parallel restricted
    security invoker
    set search_path = pg_catalog, public, pg_temp
    set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_variable
declare
    v_size int := size;
    v_vocabulary int;
begin
    perform rag._check_chunking(strategy, size, overlap, min_size, separators);
    if strategy = 'token' then
        select b.vocabulary, b.size into v_vocabulary, v_size
        from rag._token_budget(model, size) as b;
    end if;
    if min_size > 0 and strategy <> 'none' then
        return query
        select m.*
        from rag._merged_chunks(
            content, strategy, v_size, least(overlap, (v_size - 1) / 2), separators, v_vocabulary,
            least(min_size, v_size)
        ) as m;
    else
        return query
        select c.ordinal, c.body, c.start_offset, c.end_offset, c.heading_path
        from rag._chunk(
            content, strategy, v_size, least(overlap, (v_size - 1) / 2), separators, v_vocabulary
        ) as c;
    end if;
end
$$;

comment on function rag._checked_chunks(text, text, int, int, int, text[], text) is
    'rag.chunk under column names that PL/pgSQL can tell from the parameters.';

create or replace function rag.chunk(
    content text,
    strategy text default 'recursive',
    size int default 800,
    overlap int default 100,
    min_size int default 0,
    separators text[] default null,
    model text default null
)
    returns table (
        ordinal int,
        content text,
        start_offset int,
        end_offset int,
        heading_path text[]
    )
    language sql
    stable
    parallel restricted
    security definer            -- so that who may call it needs no right to its private parts
    set search_path = pg_catalog, public, pg_temp
as $$
    -- By number, because a column of the result has the parameter's name. The collation makes it
    -- work, and the same, for text of any collation.
    select c.ordinal, c.body, c.start_offset, c.end_offset, c.heading_path
    from rag._checked_chunks($1 collate "C", $2, $3, $4, $5, $6, $7) as c
$$;

comment on function rag.chunk(text, text, int, int, int, text[], text) is
    'Cuts a text into chunks of at most size characters. '
    'Strategies: recursive (at paragraphs, else lines that do not just wrap, sentences, words), '
    'markdown (the same inside sections, with the headings above each chunk; code, tables and '
    'lists stay in one piece where they fit into size; small sections under one heading are '
    'joined), sentence (whole sentences), code (whole definitions and blocks of lines, where they '
    'fit), token (as recursive, but size, overlap and min_size are tokens of the model) and none '
    '(one chunk, whatever size says). '
    'Offsets count characters from 0: content is substr(text, start_offset + 1, end_offset - '
    'start_offset). A chunk may begin up to overlap characters before the end of the chunk before '
    'it, at a sentence or line, or, inside a paragraph, at a word; never in another section. '
    'White space around a chunk belongs to none; every other character is in a chunk. A word is '
    'only cut where it is longer than size. Chunks below min_size are merged with a neighbour, '
    'where both have at most one and a half times the size together. separators, what parts most '
    'first, take the place of paragraphs, lines and sentences. Null or blank text has no chunks; '
    'size is 50 to 100000, overlap less than half of it, or 22023 is raised.';
