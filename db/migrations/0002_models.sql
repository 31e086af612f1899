-- Embedding models: the meaning of a vector, its size, and what to put before a text.

create table rag.models (
    model_id int generated always as identity primary key,
    name text not null unique,
    dimensions int not null,
    provider text not null default 'sentence-transformers',
    revision text,
    query_prefix text not null default '',
    document_prefix text not null default '',
    is_active boolean not null default false,
    created_at timestamptz not null default now(),
    constraint model_dimensions_fit_halfvec check (dimensions between 1 and 4000)
);

-- One active model at a time: vectors of two models are never compared.
create unique index models_one_is_active on rag.models (is_active) where is_active;

comment on table rag.models is 'Embedding models; exactly one of them is active.';
comment on column rag.models.dimensions is 'At most 4,000, the most that HNSW on halfvec indexes.';
