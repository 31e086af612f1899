-- Small chunks merged with a neighbour, and rag.chunk, which stands before all that cuts.

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
