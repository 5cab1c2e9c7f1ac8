"""Tables of the sources layer."""

from crm_spark.tables import Column, Table

INGEST_LEDGER = Table(
    name="ingest_ledger",
    comment="One row per source file ever taken in, recognised by its content.",
    key=("source", "batch_id"),
    columns=(
        Column("source", "string", "The source's name in the configuration."),
        Column("entity", "string", "The entity that the source feeds."),
        Column("batch_id", "string", "SHA-256 of the file's bytes."),
        Column("file_name", "string", "The file's name as it came, without its folder."),
        Column("byte_count", "bigint", "The file's size in bytes."),
        Column(
            "modified_at",
            "timestamp",
            "When the file was last written where it came from (UTC).",
            nullable=True,
            volatile=True,
        ),
        Column("landed_path", "string", "Where its bytes are kept, relative to the lake."),
        Column("read_as", "string", "The settings by which its columns were read."),
        Column("columns", "array<struct<name:string,type:string>>", "Its own columns; none if it is empty."),
        Column("fault", "string", "Why it cannot be read, so that no row of it counts.", nullable=True),
        Column(
            "extracted_until",
            "string",
            "Up to which watermark of what column, or to which version of what table, it was extracted.",
            nullable=True,
        ),
        Column("ingested_at", "timestamp", "When it was first taken in (UTC).", volatile=True),
    ),
)

TABLES = (INGEST_LEDGER,)
