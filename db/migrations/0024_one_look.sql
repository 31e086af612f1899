-- It returns the tenant from now on, which no "or replace" can do. It locks nothing that is there.

drop function if exists rag._candidates(
    text, int, text, jsonb, vector, text, real, real, text, int, timestamptz, text
);
