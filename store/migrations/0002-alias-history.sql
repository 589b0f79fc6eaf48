-- Where each alias pointed before, for going back. Beside alias_moves, which is the log of what was done and keeps no
-- generation alive any more.

CREATE TABLE alias_history (
    owner      TEXT   NOT NULL,
    name       TEXT   NOT NULL,
    -- From 1, the last one; rewritten with every move.
    position   BIGINT NOT NULL,
    generation TEXT   NOT NULL,
    PRIMARY KEY (owner, name, position),
    FOREIGN KEY (owner, name) REFERENCES aliases (owner, name),
    FOREIGN KEY (owner, generation) REFERENCES generations (owner, digest)
);
CREATE INDEX alias_history_by_generation ON alias_history (owner, generation);

-- What an alias has left since it was last made, each generation once, by its last time.
INSERT INTO alias_history (owner, name, position, generation)
SELECT owner, name, position, generation
FROM (
    SELECT moves.owner AS owner, moves.name AS name, moves.from_generation AS generation,
           ROW_NUMBER() OVER (PARTITION BY moves.owner, moves.name ORDER BY MAX(moves.revision) DESC) AS position
    FROM alias_moves moves
    JOIN aliases ON aliases.owner = moves.owner AND aliases.name = moves.name
    JOIN generations ON generations.owner = moves.owner AND generations.digest = moves.from_generation
    WHERE moves.from_generation <> aliases.generation
      AND moves.revision > (
          SELECT MAX(made.revision) FROM alias_moves made
          WHERE made.owner = moves.owner AND made.name = moves.name AND made.from_generation IS NULL)
    GROUP BY moves.owner, moves.name, moves.from_generation
) earlier
WHERE position <= 7;
