import schema from "../../../schema.json" with { type: "json" };

/** Pulumi's package schema, as it was generated when this was built. */
export const schemaText = JSON.stringify(schema);
