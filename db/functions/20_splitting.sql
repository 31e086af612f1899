-- One run of text to chunks of at most size characters, at the best places to cut.
--
-- Why bytea: substr() on UTF-8 text counts characters from the start of the value, so to read the
-- 70,000 windows of a 50 MB document is quadratic. substr() on bytea copies the slice and nothing
-- else. Places are therefore carried twice: in characters (the contract) and in bytes (the access).

create or replace function rag._whitespace()
    returns text
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select
        E'\t\n\u000b\f\r\u001c\u001d\u001e\u001f \u0085\u00a0\u1680\u2000\u2001\u2002\u2003\u2004'
        || E'\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000'
$$;

comment on function rag._whitespace() is
    'The characters that Unicode calls white space, in any locale: what is trimmed off chunks.';

create or replace function rag._clinging_marks()
    returns text
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    select
        '\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7'
        || '\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed'
        || '\u0900-\u0903\u093a-\u093c\u093e-\u094f\u0962\u0963\u0981-\u0983\u09bc\u09be-\u09cd'
        || '\u0a01-\u0a03\u0a3c-\u0a4d\u0a81-\u0a83\u0abc\u0abe-\u0acd\u0b01-\u0b03\u0b3c'
        || '\u0b3e-\u0b4d\u0bbe-\u0bcd\u0c00-\u0c04\u0c3e-\u0c4d\u0c81-\u0c83\u0cbc\u0cbe-\u0ccd'
        || '\u0d00-\u0d03\u0d3e-\u0d4d\u0dca-\u0ddf\u0e31\u0e33-\u0e3a\u0e47-\u0e4e\u0eb1'
        || '\u0eb3-\u0ebc\u0ec8-\u0ecd\u0f71-\u0f84\u102b-\u103e\u1160-\u11ff\u17b4-\u17d3'
        || '\u1ab0-\u1aff\u1dc0-\u1dff\u200c\u200d\u20d0-\u20f0\u3099\u309a\ufe00-\ufe0f'
        || '\ufe20-\ufe2f\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f\U000e0100-\U000e01ef'
$$;

comment on function rag._clinging_marks() is
    'What belongs to the character before it, to be used in the brackets of a pattern: combining '
    'marks of the living scripts, Hangul vowels and finals, joiners, variation selectors, skin '
    'tones and tags. A cut never comes before one of them.';

create or replace function rag._cut_in_word(word text, size int)
    returns int
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_mark constant text := rag._clinging_marks();
    v_flag constant text := '[\U0001f1e6-\U0001f1ff]';
    v_text constant text collate "C" := left(word, size + 1);
    -- After a joiner comes what it joins: in emoji, and consonants in the scripts of India.
    v_any_character constant text :=
        '^.*[^\u200d\u094d\u09cd\u0a4d\u0acd\u0b4d\u0c4d\u0ccd\u0d4d](?=[^' || v_mark || '])';
    v_cut int;
    v_letters int;
begin
    -- Addresses, JSON and minified code have signs that divide them.
    v_cut := length(substring(v_text from '^.*[-,;:/&|)}>][^-,;:/&|)}>' || v_mark || ']')) - 1;
    if v_cut >= size / 2 then
        return v_cut;
    end if;
    v_cut := coalesce(length(substring(v_text from v_any_character)), size);
    -- A flag is a pair of letters.
    v_letters := length(substring(left(v_text, v_cut) from v_flag || '+$'));
    if v_letters % 2 = 1 and substr(v_text, v_cut + 1, 1) ~ v_flag then
        v_cut := v_cut - 1;
    end if;
    return v_cut;
end
$$;

comment on function rag._cut_in_word(text, int) is
    'Where to cut a word that is longer than a chunk: after a sign, else between two characters '
    'as people see them, at size at the latest.';

create or replace function rag._separator_pattern(separator text)
    returns text
    language sql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
    -- Up to the last place behind the separator; behind the lines' ends it begins with, if there is
    -- more of it: "\n## " begins the next chunk. Never before a mark that belongs to it.
    select case
        when separator ~ '^\n+[^\n]' then
            '^.*' || repeat('\n', length(substring(separator from '^\n+')))
            || '(?=' || regexp_replace(ltrim(separator, E'\n'), '([^\w\s])', '\\\1', 'g') || ')'
        else
            '^.*' || regexp_replace(separator, '([^\w\s])', '\\\1', 'g')
            || '(?=[^' || rag._clinging_marks() || '])'
    end
$$;

comment on function rag._separator_pattern(text) is
    'The pattern of a text up to the last place where a separator parts it.';

create or replace function rag._split(
    content bytea,
    first_offset int,
    last_offset int,
    keep_starts int[],
    keep_ends int[],
    keep_lines boolean[],
    size int,
    overlap int,
    is_code boolean,
    is_whole boolean,
    separators text[],
    unit_starts int[],
    unit_sums int[]
)
    returns table (
        start_offset int, end_offset int, start_byte int, end_byte int, body text
    )
    language plpgsql
    immutable
    parallel safe
    security invoker
    set search_path = pg_catalog, public, pg_temp
as $$
declare
    v_spaces constant text := rag._whitespace();
    -- A class of characters is written for use inside brackets. The collation C keeps the meaning
    -- of the patterns the same in every database, and is the fastest.
    v_space constant text :=
        '\s\u001c-\u001f\u0085\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000';
    v_mark constant text := rag._clinging_marks();
    -- Two letters before the full stop: "e.g. ", "J. " and "1. " end no sentence, nor does anything
    -- that goes on with a small letter. Takes the first character of the next sentence with it.
    v_sentence constant text :=
        '(?:(?:[^\s.][^\s.0-9]\.|[0-9]{4}\.|[!?…؟۔।])["''”’»)\]*_`]*'
        || '[' || v_space || ']+[^' || v_space || 'a-zß-öø-ÿа-яё]'
        || '|[。！？；][”’」』）]*[^”’」』）' || v_mark || '])';
    -- The last place where text may be cut: paragraph, line that does not just wrap (it ends a
    -- sentence or a bracket, or a list item follows), sentence, line, clause, word.
    v_cuts text[] := array[
        '^.*(?:[^:：\s][ \t\r]*\n[ \t\r]*\n|\f)',
        '^.*(?:[.!?;…。！？；|>(){}\[\]]["''”’»*_`]*[ \t\r]*\n'
        || '|\n(?=[ \t]*(?:[-*+•|]|[0-9]{1,3}[.)])[ \t]))',
        '^.*' || v_sentence,
        '^.*\n',
        '^.*[，、：][^' || v_mark || ']',
        '^.*[' || v_space || ']'
    ];
    -- What such a place is worth when it lies at the end of the window; nearer to the start it is
    -- worth less in proportion. So a paragraph's end is taken wherever it fills a seventh of
    -- the chunk: two halves of paragraphs together are found worse than each alone (BM25 recall of
    -- squad-dev 0.85 against 0.77 when a sentence's end was worth 0.65). Inside a paragraph a full
    -- chunk counts, too: for the end of a sentence 60 characters are left empty, or a fourteenth.
    v_slack constant real := greatest(
        0.07, least(0.6, 60.0 / size / case when unit_starts is null then 1 else 4 end)
    );
    v_worths real[] := array[
        1, 0.95, 0.15, 0.15 - 0.09 * v_slack, 0.15 - 0.12 * v_slack, 0.15 - 0.15 * v_slack
    ];
    -- In lines of less than 120 characters in the mean, a line that ends with a sentence is seldom
    -- the end of a paragraph; only items of lists, rows of tables and lines of code are told.
    v_wrapped_cut constant text :=
        '^.*(?:[;|>(){}\[\]][ \t\r]*\n|\n(?=[ \t]*(?:[-*+•|]|[0-9]{1,3}[.)])[ \t]))';
    v_wrapped_worths constant real[] := array[1, 0.4]::real[] || v_worths[3:6];
    -- In code and tables only empty lines and lines count.
    v_code_worths constant real[] := array[1, 0, 0, 0.8, 0, 0.2];
    -- How many characters of the next piece the pattern takes with it.
    v_extras int[] := array[0, 0, 1, 0, 1, 0];
    v_first_clause constant text := '^.*?[,;:)–—][' || v_space || ']';
    -- A Markdown heading, or a line underlined as in reStructuredText.
    v_heading constant text := '(?:#{1,6}[ \t][^\n]*|[^\n]+\n[-=~^"]{3,}[ \t\r]*)';
    v_last_headings constant text := '(?:\n\s*' || v_heading || ')+\n\s*$';
    v_only_headings constant text := '^(?:' || v_heading || '\n\s*)+$';
    -- What is read past a window, to see whether it ends at a boundary.
    v_ahead constant int := 8;

    v_bytes constant int := octet_length(content);
    v_keeps constant int := cardinality(keep_starts);
    v_units constant int := cardinality(unit_sums) - 1;
    v_keep int := 1;                    -- the first kept range that ends behind v_cut
    v_next int;
    v_cut int := first_offset;          -- where the new text begins; the overlap stands before it
    v_cut_byte int := 0;
    v_start int;                        -- where the chunk begins
    v_start_byte int;
    v_end int;                          -- where the last chunk ended
    v_end_byte int;
    v_chunk text collate "C";           -- the last chunk
    v_level int := 1;                   -- the kind of place it was cut at
    v_is_code boolean := is_code;       -- it was cut inside code or a table
    v_size int := size;                 -- how many characters from v_cut on fit into a chunk
    v_overlap int := overlap;           -- how many before v_cut may be repeated
    v_unit int := 1;                    -- the unit of tokens that v_cut is in
    v_from int;                         -- a unit before it
    v_to int := 1;                      -- the first unit that does not fit
    v_may_overlap boolean := false;
    v_may_shorten boolean := true;
    v_window text collate "C";          -- new text: size characters and v_ahead more
    v_text text collate "C";
    v_stop int;
    v_left int;
    v_reach int;
    v_room int;                         -- how many characters of new text the chunk may take
    v_limit int;                        -- where to cut at the latest
    v_floor int;                        -- where something kept ends: a paragraph's end
    v_hold int;                         -- where that starts
    v_best int;
    v_score real;
    v_worth real;
    v_is_wrapped boolean;
    v_at int;
begin
    if separators is not null then
        -- What the first of them parts is worth most. White space is always the last resort.
        v_cuts := array(
            select rag._separator_pattern(s.separator)
            from unnest(separators) with ordinality as s (separator, place)
            order by s.place
        ) || v_cuts[6];
        v_worths := array(
            select 1 - 0.7 * (n - 1) / cardinality(separators)
            from generate_series(1, cardinality(separators)) as n
        ) || 0.25::real;
        v_extras := array_fill(0, array[cardinality(v_cuts)]);
    end if;
    while v_cut < last_offset loop
        if unit_starts is not null then
            -- Counted in tokens: how many characters are they from here?
            while v_unit < v_units and unit_starts[v_unit + 1] <= v_cut loop
                v_unit := v_unit + 1;
            end loop;
            while v_to <= v_units and unit_sums[v_to + 1] - unit_sums[v_unit] <= size loop
                v_to := v_to + 1;
            end loop;
            v_size := unit_starts[v_to] - v_cut;
            v_from := v_unit;
            while v_from > 1 and unit_sums[v_unit] - unit_sums[v_from - 1] <= overlap loop
                v_from := v_from - 1;
            end loop;
            v_overlap := v_cut - unit_starts[v_from];
        end if;
        v_stop := least(v_cut_byte + 4 * (v_size + v_ahead), v_bytes);
        while v_stop < v_bytes and get_byte(content, v_stop) between 128 and 191 loop
            v_stop := v_stop - 1;
        end loop;
        v_window := left(
            convert_from(substr(content, v_cut_byte + 1, v_stop - v_cut_byte), 'UTF8'),
            v_size + v_ahead
        );
        v_text := ltrim(v_window, v_spaces);
        if v_text <> v_window then
            v_cut := v_cut + length(v_window) - length(v_text);
            v_cut_byte := v_cut_byte + octet_length(v_window) - octet_length(v_text);
            continue;
        end if;
        v_left := last_offset - v_cut;
        while v_keep <= v_keeps and keep_ends[v_keep] <= v_cut loop
            v_keep := v_keep + 1;
        end loop;

        -- The overlap: whole sentences, in code whole lines. Where there are none and the last
        -- chunk ended inside a paragraph, from a clause or any word. Never more than half of that
        -- chunk, never a part of what was kept in one piece, and never so much that a paragraph or
        -- something to be kept that fits into a chunk would not fit any more.
        v_start := v_cut;
        v_start_byte := v_cut_byte;
        if v_may_overlap then
            v_reach := v_overlap;
            v_at := strpos(v_window, E'\n\n') - 1;
            if v_at between v_size - v_overlap and v_size then
                v_reach := v_size - v_at;
            end if;
            if v_left <= v_size then
                v_reach := least(v_reach, v_size - v_left);
            end if;
            if v_keep <= v_keeps
                and keep_starts[v_keep] <= v_cut
                and keep_ends[v_keep] - v_cut <= v_size
            then
                v_reach := least(v_reach, v_size - (keep_ends[v_keep] - v_cut));
            end if;
            v_reach := least(v_reach - (v_cut - v_end), length(v_chunk) / 2);
            if v_keep > 1
                and not is_whole
                and v_end - v_reach > keep_starts[v_keep - 1]
                and v_end - v_reach < keep_ends[v_keep - 1]
            then
                v_reach := v_end - keep_ends[v_keep - 1];
            end if;
            if is_whole then
                -- Only what was kept in one piece, as much of it as there is room for.
                v_next := v_keep;
                while v_next > 1 and keep_starts[v_next - 1] >= v_end - v_reach loop
                    v_next := v_next - 1;
                end loop;
                if v_next < v_keep then
                    v_text := right(v_chunk, v_end - keep_starts[v_next]);
                    v_start := v_end - length(v_text);
                    v_start_byte := v_end_byte - octet_length(v_text);
                end if;
            elsif v_reach > 0 then
                v_text := right(v_chunk, v_reach + 1);
                if v_is_code then
                    v_at := length(substring(v_text from '^.*?\n'));
                else
                    v_at := length(substring(v_text from '^.*?' || v_sentence)) - 1;
                    if v_at is null and v_level > 3 then
                        v_at := length(substring(v_text from '^.*?\n'));
                    end if;
                    if v_at is null and v_level >= 3 then
                        v_at := length(substring(v_text from v_first_clause));
                        if v_at is null or v_at > v_reach / 2 then
                            v_at := length(substring(v_text from '^.*?[' || v_space || ']'));
                        end if;
                    end if;
                end if;
                v_text := ltrim(substr(v_text, v_at + 1), v_spaces);
                if v_text <> '' then
                    v_start := v_end - length(v_text);
                    v_start_byte := v_end_byte - octet_length(v_text);
                end if;
            end if;
        end if;
        v_room := v_size - (v_cut - v_start);
        if unit_starts is not null and v_start < v_cut then
            v_next := v_to;
            while v_next > v_unit + 1
                and unit_sums[v_next] - unit_sums[v_from] > size
            loop
                v_next := v_next - 1;
            end loop;
            v_room := unit_starts[v_next] - v_cut;
        end if;

        if v_left <= v_room then
            v_best := v_left;
        else
            -- What is to be kept and fits into a chunk is not cut: the cut goes before it.
            v_limit := v_room;
            v_floor := 0;
            v_hold := 0;
            v_level := 1;
            v_is_code := is_code;
            v_next := v_keep;
            while v_next <= v_keeps and keep_starts[v_next] < v_cut + v_limit loop
                if keep_ends[v_next] <= v_cut + v_limit then
                    v_hold := keep_starts[v_next] - v_cut;
                    v_floor := keep_ends[v_next] - v_cut;
                elsif keep_ends[v_next] - keep_starts[v_next] > v_size
                    or keep_starts[v_next] <= v_cut
                then
                    v_floor := greatest(keep_starts[v_next] - v_cut, v_floor);
                    v_is_code := keep_lines[v_next];
                else
                    v_limit := keep_starts[v_next] - v_cut;
                    v_floor := v_limit;
                end if;
                v_next := v_next + 1;
            end loop;
            if v_may_shorten and v_floor < v_limit and v_left - v_limit < v_size / 8 then
                -- No crumb at the end: what is left for the last chunk is made larger.
                v_at := length(substring(left(v_window, v_left - v_size / 8) from v_cuts[1]));
                if v_at is null or v_at < v_limit * 6 / 10 then
                    v_at := greatest(v_limit * 6 / 10, v_left - v_size * 3 / 10);
                end if;
                if v_at > v_floor then
                    v_limit := v_at;
                elsif v_hold >= v_size / 8
                    and v_left - v_floor < v_size / 8
                    and v_left - v_hold <= v_size
                then
                    v_limit := v_hold;
                    v_floor := v_hold;
                end if;
            end if;
            v_best := v_floor;
            if v_floor < v_limit then
                v_text := substr(v_window, v_floor + 1, v_limit - v_floor) || coalesce(
                    substring(
                        substr(v_window, v_limit + 1, v_ahead)
                        from '^[' || v_space || ']*[^' || v_space || ']?'
                    ),
                    ''
                );
                v_score := v_floor::real / v_limit;
                v_is_wrapped := separators is null
                    and 120 * (length(v_text) - length(replace(v_text, E'\n', '')))
                    > length(v_text);
                for i in 1 .. cardinality(v_cuts) loop
                    v_worth := case
                        when v_is_code and separators is null then v_code_worths[i]
                        when v_is_wrapped then v_wrapped_worths[i]
                        else v_worths[i]
                    end;
                    continue when v_score >= v_worth;
                    -- An empty line, or where the code begins, is a better end than any line.
                    exit when v_is_code and separators is null and i >= 4 and v_score >= 0.4;
                    v_at := v_floor - v_extras[i] + length(substring(
                        v_text from case when i = 2 and v_is_wrapped then v_wrapped_cut
                            else v_cuts[i] end
                    ));
                    -- A heading is not left alone by a cut right behind it.
                    continue when i < 6
                        and separators is null
                        and v_at < 250
                        and left(v_window, v_at) ~ v_only_headings;
                    v_worth := v_worth * v_at / v_limit;
                    if v_worth > v_score then
                        v_best := v_at;
                        v_score := v_worth;
                        v_level := i;
                    end if;
                end loop;
            end if;
            if v_best = v_floor then
                v_is_code := is_code;
            end if;
            if v_best > v_floor and separators is null then
                -- Nor is it left at the end of the chunk, away from its text.
                v_at := v_best - length(substring(
                    right(left(v_window, v_best), 200) collate "C" from v_last_headings
                ));
                if v_at > v_limit / 4 then
                    v_best := v_at;
                end if;
            end if;
            if v_best = 0 then
                -- One word fills the window. In the largest window it may fit.
                if v_limit < v_size then
                    v_may_overlap := false;
                    v_may_shorten := false;
                    continue;
                end if;
                v_level := 7;
                v_best := rag._cut_in_word(v_window, v_limit);
            end if;
        end if;

        v_text := left(v_window, v_best);
        v_chunk := rtrim(v_text, v_spaces);
        v_end := v_cut + length(v_chunk);
        v_end_byte := v_cut_byte + octet_length(v_chunk);
        if v_start < v_cut then
            v_chunk := convert_from(
                substr(content, v_start_byte + 1, v_end_byte - v_start_byte), 'UTF8'
            );
        end if;
        start_offset := v_start;
        end_offset := v_end;
        start_byte := v_start_byte;
        end_byte := v_end_byte;
        body := v_chunk;
        return next;

        -- Past the white space, or the next window would have to be read twice.
        v_cut := v_cut + v_best;
        v_cut_byte := v_cut_byte + octet_length(v_text);
        v_text := substr(v_window, v_best + 1, 8);
        v_window := ltrim(v_text, v_spaces);
        v_cut := v_cut + length(v_text) - length(v_window);
        v_cut_byte := v_cut_byte + octet_length(v_text) - octet_length(v_window);
        v_may_overlap := overlap > 0;
        v_may_shorten := true;
    end loop;
end
$$;

comment on function rag._split(
    bytea, int, int, int[], int[], boolean[], int, int, boolean, boolean, text[], int[], int[]
) is
    'Chunks of one run of text, given in UTF-8, that lies at first_offset .. last_offset; bytes '
    'count from its start. size and overlap are characters or, where unit_starts says where units '
    'of text start and unit_sums how many tokens stand before each, tokens. is_code: cut at lines. '
    'is_whole: an overlap is made of what is kept in one piece, and of nothing else.';
