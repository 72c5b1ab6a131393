"""Fine-tunes: adapters that the pool trains on a member's examples, in parts that outlive their workers."""
