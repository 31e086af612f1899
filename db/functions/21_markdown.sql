-- Markdown: its blocks, its headings as paths, and what is to be kept in one piece.
--
--   rag._markdown_outline      joins small sections that belong together
--     rag._markdown_sections   heading paths; what is to be kept in one piece
--       rag._markdown_blocks   line scanner: headings, code, tables, lists, quotes

create or replace function rag._heading_text(line text)
    returns text
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_spaces constant text := rag._whitespace();
    v_raw text collate "C";
    v_text text collate "C";
begin
    v_raw := regexp_replace(line collate "C", '^(?:\ufeff| {0,3})#{1,6}[ \t]+', '');
    v_raw := regexp_replace(v_raw, '[ \t]+#+\s*$', '');
    v_text := v_raw;
    -- Most headings are plain, and the rest costs seven patterns.
    if v_text ~ '[][*_`<{\\]' then
        -- Anchors: {#install}, {/*install*/}.
        v_text := regexp_replace(v_text, '[ \t]*\{(?:#|/\*)[^}]*\}\s*$', '');
        v_text := regexp_replace(v_text, '!?\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])', '\1', 'g');
        if v_text !~ '`' then
            v_text := regexp_replace(v_text, '</?[A-Za-z][^>]*>', '', 'g');
        end if;
        v_text := regexp_replace(v_text, '\*\*([^*`]+)\*\*', '\1', 'g');
        v_text := regexp_replace(
            v_text, '(^|[^\w\\])([*_]{1,2})([^\s*_`][^*_`]*)\2(?!\w)', '\1\3', 'g'
        );
        v_text := regexp_replace(v_text, '`+', '', 'g');
        v_text := regexp_replace(v_text, '\\([^\w\s])', '\1', 'g');
    end if;
    v_text := btrim(regexp_replace(v_text, '\s+', ' ', 'g'), v_spaces);
    return coalesce(nullif(v_text, ''), btrim(v_raw, v_spaces));
end
$$;

comment on function rag._heading_text(text) is
    'Plain text of a Markdown heading: without its # marks, anchor, links and emphasis.';

create or replace function rag._markdown_blocks(content text)
    returns table (
        kind text,
        level int,
        title text,
        lead_offset int,
        start_offset int,
        end_offset int,
        start_byte int,
        previous_end int
    )
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_line text collate "C";
    v_chars int;
    v_octets int;
    v_kind text;
    v_is_indented boolean;          -- by two columns: belongs to a list item
    v_is_deep boolean;              -- by four columns: code, when nothing else is open
    v_continues boolean;
    v_start int;                    -- where the line starts
    v_start_byte int;
    v_next int := 0;                -- where the next one starts
    v_next_byte int := 0;
    v_end int := 0;                 -- where the last line that is not blank ended
    v_after_blank boolean := true;
    v_block text;                   -- what is open: paragraph, code, table, list, quote
    v_block_start int;
    v_block_byte int;
    v_block_lead int;
    v_block_previous int;           -- v_end before it
    v_lines int;                    -- of the open paragraph
    v_paragraph text collate "C";   -- its text, as long as it may still become a heading
    v_last text collate "C";        -- its last line
    v_last_start int;
    v_lead int;                     -- where what introduces the next block starts
    v_fence text;                   -- what ends verbatim text: ```, ~~~~, </pre>, -->
    v_fence_start int;
    v_fence_lead int;
    v_head text collate "C" := left(content, 8000);
    v_front int := 0;
begin
    if v_head ~ '^\ufeff?(?:---|\+\+\+)[ \t\r]*\n[ \t]*[-\w#"''][^\n]*[:=]' then
        v_front := regexp_instr(v_head, '\n(?:---|\.\.\.|\+\+\+)[ \t\r]*(?:\n|$)', 5, 1, 1) - 1;
    end if;
    if v_front > 0 then
        kind := 'code';
        start_offset := 0;
        end_offset := v_front;
        return next;
    end if;

    for v_line, v_chars, v_octets, v_kind, v_is_indented, v_is_deep in
        select
            l.line,
            length(l.line),
            octet_length(l.line),
            -- Most lines are told by their first sign; each further pattern takes 0.1 to 0.2 us.
            case
                when l.line !~ '^\s*(?:[-#=~`*+0-9|:><\ufeff]|$)' then 'text'
                when l.line ~ '^\s*$' then 'blank'
                when l.line ~ '^[ \t]*(?:`{3,}[^`]*|~{3,}.*)$' then 'fence'
                when l.line ~ '^(?:\ufeff| {0,3})#{1,6}[ \t]+(?!#+\s*$)\S' and length(l.line) <= 500
                    then 'heading'
                when l.line ~ '^ {0,3}=+\s*$' then 'equals'
                when l.line ~ '^ {0,3}-+\s*$' then 'dashes'
                when l.line ~ '^[ \t]*(?:[-*+]|1[.)])(?:[ \t]|$)' then 'item'
                when l.line ~ '^[ \t]*[0-9]{1,9}[.)][ \t]' then 'number'
                when l.line ~ '^ {0,3}\|' then 'row'
                when l.line ~ '^ {0,3}:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)+\|?\s*$' then 'rule'
                when l.line ~ '^ {0,3}>' then 'quote'
                when l.line ~ '^ {0,3}<(?:pre|script|style|!--)' then 'raw'
                else 'text'
            end,
            l.line ~ '^(?:  | ?\t)',
            l.line ~ '^(?:    | {0,3}\t)'
        from (
            select s.line collate "C" as line
            from string_to_table(content, E'\n') as s (line)
        ) as l
        union all
        select '', 0, 0, 'end', false, false
    loop
        v_start := v_next;
        v_start_byte := v_next_byte;
        v_next := v_start + v_chars + 1;
        v_next_byte := v_start_byte + v_octets + 1;

        if v_kind = 'blank' then
            v_after_blank := true;
            continue;
        end if;
        if v_start < v_front and v_kind <> 'end' then
            v_end := v_start + v_chars;
            continue;
        end if;
        if v_fence is not null then
            if v_kind = 'end' then
                v_continues := false;
            elsif v_fence ~ '^[`~]' then
                v_end := v_start + v_chars;
                v_continues := v_kind <> 'fence'
                    or ltrim(btrim(v_line, E' \t\r'), left(v_fence, 1)) <> ''
                    or strpos(v_line, v_fence) = 0;
            else
                v_end := v_start + v_chars;
                v_continues := strpos(v_line, v_fence) = 0;
            end if;
            if v_continues then
                continue;
            end if;
            kind := 'code';
            lead_offset := v_fence_lead;
            start_offset := v_fence_start;
            end_offset := v_end;
            return next;
            v_fence := null;
            v_after_blank := false;
            if v_kind <> 'end' then
                continue;
            end if;
        end if;

        v_continues := case v_block
            when 'paragraph' then
                not v_after_blank and (
                    v_kind in ('text', 'number', 'rule')
                    or v_is_deep
                    or v_kind in ('equals', 'dashes')
                        and v_lines <= 3
                        and length(v_paragraph) <= 500
                )
            when 'list' then
                v_kind in ('item', 'number')
                or v_is_indented
                or not v_after_blank and v_kind in ('text', 'row', 'rule', 'quote', 'equals')
            when 'code' then v_is_deep
            when 'table' then not v_after_blank and strpos(v_line, '|') > 0
            when 'quote' then not v_after_blank and v_kind in ('quote', 'text')
            else false
        end;

        if v_continues then
            if v_block = 'paragraph' then
                if v_kind in ('equals', 'dashes') and not v_is_deep then
                    -- Setext heading: the paragraph was its text.
                    kind := 'heading';
                    level := case v_kind when 'equals' then 1 else 2 end;
                    title := rag._heading_text(v_paragraph);
                    start_offset := v_block_start;
                    start_byte := v_block_byte;
                    end_offset := v_start + v_chars;
                    previous_end := v_block_previous;
                    return next;
                    v_lead := v_block_start;
                    v_block := null;
                elsif v_kind = 'rule' and strpos(v_last, '|') > 0 then
                    -- The line before was the head of a table.
                    if v_lines > 1 then
                        v_block_start := v_last_start;
                        v_block_lead := null;
                    end if;
                    v_block := 'table';
                else
                    v_lines := v_lines + 1;
                    if v_lines <= 3 then
                        v_paragraph := v_paragraph || ' ' || v_line;
                    end if;
                    v_last := v_line;
                    v_last_start := v_start;
                end if;
            elsif v_kind = 'fence' and v_block = 'list' then
                v_fence := substring(v_line from '`{3,}|~{3,}');
                v_fence_start := v_start;
                v_fence_lead := null;
            end if;
        else
            if v_block = 'paragraph' then
                -- "For example:" and <Note> stay with what they introduce.
                v_lead := case
                    when v_last ~ '[:：][*_`]*\s*$' or v_last ~ '^\s*<[A-Za-z][^>]*[^/>]>\s*$'
                        then coalesce(v_block_lead, v_block_start)
                end;
            elsif v_block is not null then
                kind := v_block;
                lead_offset := v_block_lead;
                start_offset := v_block_start;
                end_offset := v_end;
                return next;
            end if;

            v_block_start := v_start;
            v_block_byte := v_start_byte;
            v_block_previous := v_end;
            v_block_lead := v_lead;
            v_block := case
                when v_kind in ('heading', 'equals', 'dashes', 'fence', 'end') then null
                when v_is_deep then 'code'
                when v_kind in ('item', 'number') then 'list'
                when v_kind = 'row' then 'table'
                when v_kind = 'quote' then 'quote'
                when v_kind = 'raw' then null
                else 'paragraph'
            end;
            v_lead := null;
            if v_block = 'paragraph' then
                v_lines := 1;
                v_paragraph := v_line;
                v_last := v_line;
                v_last_start := v_start;
            elsif v_kind = 'heading' then
                kind := 'heading';
                level := length(substring(v_line from '#+'));
                title := rag._heading_text(v_line);
                start_offset := v_start;
                start_byte := v_start_byte;
                end_offset := v_start + v_chars;
                previous_end := v_end;
                return next;
                v_lead := v_start;
            elsif v_kind in ('fence', 'raw') and v_block is null then
                v_fence := coalesce(
                    substring(v_line from '`{3,}|~{3,}'),
                    '</' || substring(v_line from '<(pre|script|style)') || '>',
                    '-->'
                );
                v_fence_start := v_start;
                v_fence_lead := v_block_lead;
                if v_kind = 'raw' and strpos(v_line, v_fence) > 0 then
                    v_fence := null;
                end if;
            elsif v_kind = 'end' then
                kind := 'end';
                start_offset := v_start;
                start_byte := v_start_byte;
                previous_end := v_end;
                return next;
            end if;
        end if;
        v_after_blank := false;
        v_end := v_start + v_chars;
    end loop;
end
$$;

comment on function rag._markdown_blocks(text) is
    'The headings of a Markdown text, what in it should stay in one piece, and its end. '
    'lead_offset: where the line that introduces a block starts; previous_end: where the text '
    'before a heading ends.';

create or replace function rag._markdown_sections(content text, size int)
    returns table (
        start_offset int,
        end_offset int,
        start_byte int,
        end_byte int,
        first_path text[],
        heading_path text[],
        keep_starts int[],
        keep_ends int[],
        keep_lines boolean[]
    )
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_block record;
    v_levels int[] := '{}';
    v_level int := 7;               -- of the section's first heading
    v_body int := 0;                -- where the text under its last heading starts
    v_continues boolean;
    v_lead int;
    v_start int;
begin
    start_offset := 0;
    start_byte := 0;
    first_path := '{}';
    heading_path := '{}';
    keep_starts := '{}';
    keep_ends := '{}';
    keep_lines := '{}';
    for v_block in
        select b.*
        from rag._markdown_blocks(content) as b
        order by b.start_offset, b.end_offset desc
    loop
        if v_block.kind in ('heading', 'end') then
            end_offset := v_block.previous_end;
            end_byte := v_block.start_byte;
            v_continues := v_block.kind = 'heading'
                and v_block.level >= v_level
                and end_offset <= v_body;
            if not v_continues and end_offset > start_offset then
                return next;
            end if;
            exit when v_block.kind = 'end';
            while v_levels[cardinality(v_levels)] >= v_block.level loop
                v_levels := trim_array(v_levels, 1);
                heading_path := trim_array(heading_path, 1);
            end loop;
            v_levels := v_levels || v_block.level;
            heading_path := heading_path || v_block.title;
            v_body := v_block.end_offset;
            continue when v_continues;
            first_path := heading_path;
            v_level := v_block.level;
            start_offset := v_block.start_offset;
            start_byte := v_block.start_byte;
            keep_starts := '{}';
            keep_ends := '{}';
            keep_lines := '{}';
            continue;
        end if;

        -- With the line that introduces it, if both fit. A heading is not left alone even where
        -- they do not: what stands right under it is then cut, like what is too long by itself.
        v_lead := case
            when v_block.lead_offset < v_body then start_offset
            else v_block.lead_offset
        end;
        v_start := case
            when v_lead < keep_ends[cardinality(keep_ends)] then v_block.start_offset
            when v_block.end_offset - v_lead <= size then v_lead
            when v_lead < v_body and v_block.start_offset - v_body < 10 then v_lead
            else v_block.start_offset
        end;
        -- Code inside a list that is kept is kept with it. A list or quote too long to be kept is
        -- cut like any text; code and tables are then cut at their lines.
        continue when v_start < keep_ends[cardinality(keep_ends)];
        continue when v_block.kind in ('list', 'quote') and v_block.end_offset - v_start > size;
        keep_starts := array_append(keep_starts, v_start);
        keep_ends := array_append(keep_ends, v_block.end_offset);
        keep_lines := array_append(keep_lines, v_block.kind in ('code', 'table'));
    end loop;
end
$$;

comment on function rag._markdown_sections(text, int) is
    'The sections of a Markdown text, each from a heading to the next; headings with nothing under '
    'them belong to the section that follows. With the headings above the first and the last of '
    'them, and the ranges to keep in one piece.';

create or replace function rag._are_near(path text[], follower text[])
    returns boolean
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select
        follower[:cardinality(path)] = path
        or cardinality(path) > 1
            and follower[:cardinality(path) - 1] = path[:cardinality(path) - 1]
$$;

comment on function rag._are_near(text[], text[]) is
    'Whether a section lies under another one, or with it under the same heading.';

create or replace function rag._markdown_outline(content text, size int)
    returns table (
        start_offset int,
        end_offset int,
        start_byte int,
        end_byte int,
        heading_path text[],
        next_offset int,
        next_path text[],
        keep_starts int[],
        keep_ends int[],
        keep_lines boolean[]
    )
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
#variable_conflict use_variable
declare
    -- Below 100 characters there is a heading and a sentence: no passage that answers a question.
    -- A section of a third of a chunk or more is left alone, so that a passage has one subject.
    v_tiny constant int := least(100, size / 3);
    v_small constant int := size / 3;
    v_section record;
    v_length int;
    v_run record;               -- the sections joined so far
    v_run_length int;
    v_is_near boolean;
    v_first_path text[];        -- of the run in the columns of the result
begin
    -- The columns of the result hold the run before v_run: it may yet take up a tiny follower.
    for v_section in
        select
            s.*,
            null::int as next_offset,
            null::text[] as next_path
        from rag._markdown_sections(content, size) as s
        union all
        select null, null, null, null, null, null, null, null, null, null, null
    loop
        if v_run_length is not null then
            v_length := v_section.end_offset - v_section.start_offset;
            v_is_near := rag._are_near(v_run.first_path, v_section.first_path);
            if v_is_near and v_run_length < v_tiny
                or v_is_near and greatest(v_run_length, v_length) < v_small
                    and v_section.end_offset - v_run.start_offset <= size
            then
                if v_section.end_offset - v_run.start_offset > size then
                    v_run.next_offset := v_section.start_offset;
                    v_run.next_path := v_section.heading_path;
                elsif v_run.first_path = '{}' or v_run_length < v_tiny and v_length >= v_tiny then
                    v_run.heading_path := v_section.heading_path;
                elsif v_run_length < v_tiny or v_length >= v_tiny then
                    -- Those they share.
                    while v_run.heading_path
                        <> v_section.heading_path[:cardinality(v_run.heading_path)]
                    loop
                        v_run.heading_path := trim_array(v_run.heading_path, 1);
                    end loop;
                end if;
                if v_run.first_path = '{}' then
                    v_run.first_path := v_section.first_path;
                end if;
                v_run.end_offset := v_section.end_offset;
                v_run.end_byte := v_section.end_byte;
                v_run.keep_starts := v_run.keep_starts || v_section.keep_starts;
                v_run.keep_ends := v_run.keep_ends || v_section.keep_ends;
                v_run.keep_lines := v_run.keep_lines || v_section.keep_lines;
                v_run_length := v_run.end_offset - v_run.start_offset;
                continue;
            end if;

            if v_run_length < v_tiny
                and v_first_path <> '{}'
                and rag._are_near(v_first_path, v_run.first_path)
                and next_offset is null
                and (v_run.end_offset - start_offset <= size or end_offset - start_offset > size)
            then
                next_offset := v_run.start_offset;
                next_path := v_run.heading_path;
                end_offset := v_run.end_offset;
                end_byte := v_run.end_byte;
            else
                if start_offset is not null then
                    return next;
                end if;
                v_first_path := v_run.first_path;
                start_offset := v_run.start_offset;
                end_offset := v_run.end_offset;
                start_byte := v_run.start_byte;
                end_byte := v_run.end_byte;
                heading_path := v_run.heading_path;
                next_offset := v_run.next_offset;
                next_path := v_run.next_path;
                keep_starts := v_run.keep_starts;
                keep_ends := v_run.keep_ends;
                keep_lines := v_run.keep_lines;
            end if;
        end if;
        v_run := v_section;
        v_run_length := v_run.end_offset - v_run.start_offset;
    end loop;
    if start_offset is not null then
        return next;
    end if;
end
$$;

comment on function rag._markdown_outline(text, int) is
    'The sections of a Markdown text, tiny ones joined with what follows and runs of small ones '
    'under the same heading with each other. heading_path are the headings of what lies before '
    'next_offset, next_path those of what lies behind it.';
