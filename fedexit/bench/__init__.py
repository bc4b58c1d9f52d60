"""`fedexit bench`: what the engine, the aggregation and a shallow exit cost, beside their floors and other engines."""
