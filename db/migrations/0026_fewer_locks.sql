-- A search in a big tenant took up to 43 locks, a search in a small one 30. What was looked up in a
-- table of its own for each search stands where the search has read a row anyway.
--
-- Locks rag.tenants, rag.models, rag.collections, rag.postings and rag.lexeme_statistics until it
-- ends: the primary key of the last is built anew, some two seconds for a million lexemes.

-- Searches have read the model; the set that is current was looked up beside it.
alter table rag.models add column word_vector_set int;

update rag.models as m
set word_vector_set = s.set_id
from rag.word_vector_sets as s
where s.model_id = m.model_id and s.is_current;

comment on column rag.models.word_vector_set is
    'The set of word vectors that searches use (rag.word_vector_sets.is_current); null: none.';

-- Most tenants have no document that expires, and all their searches asked whether one had.
alter table rag.tenants add column has_expiries boolean not null default false;

update rag.tenants as t
set has_expiries = true
where exists (
    select from rag.documents as d where d.tenant_id = t.tenant_id and d.expires_at is not null
);

comment on column rag.tenants.has_expiries is
    'Whether a document that expires has ever been put; else searches need not look for any.';

-- By the set from now on, and not by the model: another name of a parameter, which no "or replace"
-- can give.
drop function if exists rag._sum_word_vectors(int, text);

-- What belongs to posting lists in the table of the lists: which chunk a place is, and what has
-- changed since. It is empty: the migration before has dropped what lists there were.
alter table rag.postings
alter column idf drop not null,
alter column weights drop not null,
add column change_id bigint not null default 0,
add column chunk_ids bigint[],
drop constraint postings_pkey,
add primary key (tenant_id, generation, dimension, block, change_id),
add constraint posting_is_of_its_kind check (
    case
        when dimension > 0 then num_nulls(idf, weights) = 0 and chunk_ids is null
        else weights is null and chunk_ids is not null
    end
);

alter table rag.postings alter column chunk_ids set storage plain;

create sequence rag.posting_change_ids;

drop table rag.posting_places, rag.posting_changes;

comment on table rag.postings is
    'By dimension: above 0, of a lexeme its part of the score of each chunk in a block of 32,000, '
    'of a facet which chunks have it; below 0, which chunk a place in a block is, -1 for the first '
    '500; 0, chunks that were indexed or got other metadata since, each of which searches look at.';
comment on column rag.postings.idf is
    'What the stored BM25 weights are multiplied with in a list; of a facet the share of chunks '
    'that have it; of the first places of a block the greatest weight in it and those before.';
comment on column rag.postings.change_id is 'The number of a change; 0 for what is none.';
comment on column rag.postings.chunk_ids is
    'Places: the chunks at 500 of them, in their order. Changes: the chunks.';
comment on sequence rag.posting_change_ids is
    'Numbers of changes: one that is noted later has a greater one, whoever commits first.';

-- Totals and deltas of the statistics in the table of the statistics themselves, under the lexeme
-- that is none. Its index is built anew, two seconds for 1,000,000 lexemes of all tenants together.
alter table rag.lexeme_statistics
alter column chunks set default 0,
alter column max_weight set default 0,
alter column sum_weight set default 0,
alter column sum_square set default 0,
add column delta_id bigint not null default 0,
add column total_length double precision,
add column reference_length real,
add column is_settled boolean not null default false,
add column size int,
add column lexemes text[],
add column counts int[],
add column max_weights real[],
add column sum_weights real[],
add column sum_squares real[],
drop constraint lexeme_statistics_pkey,
add constraint lexeme_statistics_pkey primary key (tenant_id, lexeme, delta_id),
add constraint statistics_are_of_their_kind check (
    case
        when lexeme <> '' then
            delta_id = 0
            and num_nonnulls(
                total_length, reference_length, size, lexemes, counts, max_weights, sum_weights,
                sum_squares
            ) = 0
        when delta_id = 0 then total_length is not null and reference_length > 0
        else
            num_nulls(
                total_length, size, lexemes, counts, max_weights, sum_weights, sum_squares
            ) = 0
    end
);

create sequence rag.lexeme_delta_ids;

select setval('rag.lexeme_delta_ids', s.last_value, s.is_called)
from rag.lexeme_deltas_delta_id_seq as s;

insert into rag.lexeme_statistics (
    tenant_id, lexeme, chunks, total_length, reference_length, is_settled
)
select s.tenant_id, '', s.chunks, s.total_length, s.reference_length, s.is_settled
from rag.lexical_statistics as s;

insert into rag.lexeme_statistics (
    tenant_id, lexeme, delta_id, chunks, total_length, size, lexemes, counts, max_weights,
    sum_weights, sum_squares
)
select
    d.tenant_id, '', d.delta_id, d.chunks, d.total_length, d.size, d.lexemes, d.counts,
    d.max_weights, d.sum_weights, d.sum_squares
from rag.lexeme_deltas as d;

drop table rag.lexical_statistics, rag.lexeme_deltas;

comment on table rag.lexeme_statistics is
    'BM25: in how many of a tenant''s chunks a lexeme is. Without a lexeme: how many chunks there '
    'are at all, and changes of all this that are not taken in yet.';
comment on column rag.lexeme_statistics.delta_id is
    'The number of a change that is not taken in yet; 0 for what is none.';
comment on column rag.lexeme_statistics.total_length is 'Of all chunks: the sum of their lengths.';
comment on column rag.lexeme_statistics.reference_length is
    'Of all chunks: the mean length that the stored weights were made with; scores are corrected '
    'for its drift.';
comment on column rag.lexeme_statistics.is_settled is
    'Of all chunks: whether the reference length is that of 1,000 chunks or more.';
comment on column rag.lexeme_statistics.size is 'Of a change: how many lexemes it has.';
comment on sequence rag.lexeme_delta_ids is 'Numbers of changes of the statistics.';

-- The languages of a collection in its own row.
alter table rag.collections add column languages text[] not null default '{}';

update rag.collections as n
set
    languages = array(
        select l.language
        from rag.collection_languages as l
        where l.tenant_id = n.tenant_id and l.collection_id = n.collection_id
        order by l.language
    );

drop table rag.collection_languages;

comment on column rag.collections.languages is
    'The text search configurations that its documents were put in; a query is asked in all.';
