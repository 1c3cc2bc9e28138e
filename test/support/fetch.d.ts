// A global type that the types of @modelcontextprotocol/sdk name, and that @types/node 20 does not declare.
type HeadersInit = ConstructorParameters<typeof Headers>[0];
