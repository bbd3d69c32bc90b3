"""The examples of the lifecycle hooks' documentation, with what they leave out filled in."""
# mypy: ignore-errors
# it is written as there: without annotations, and with hooks that have no self

import adapter


def setup_database():
    return type("Database", (), {"query": staticmethod(str.upper)})


async def setup_cache():
    return {}


@adapter.service(workers=4)
class HookService:
    # Deployment hook does not receive `self` argument. It acts similarly to a static method.
    @adapter.on_deployment
    def prepare():
        print("Do some preparation work, running only once.")

    # Multiple deployment hooks can be defined
    @adapter.on_deployment
    def additional_setup():
        print("Do more preparation work if needed, also running only once.")

    def __init__(self) -> None:
        # Startup logic and initialization code
        print("This runs on Service startup, once for each worker, so it runs 4 times.")

    @adapter.api
    def predict(self, text) -> str:
        return text.upper()

    @adapter.on_shutdown
    def shutdown(self):
        # Logic on shutdown
        print("Cleanup actions on Service shutdown.")

    @adapter.on_shutdown
    async def async_shutdown(self):
        print("Async cleanup actions on Service shutdown.")


@adapter.service(workers=4)
class StartupService:
    @adapter.on_deployment
    def prepare():
        print("Global preparation, runs once before workers start.")

    @adapter.on_startup
    def init_resources(self):
        # This runs once per worker
        print("Initializing resources for worker.")
        self.db_connection = setup_database()

    @adapter.on_startup
    async def init_async_resources(self):
        # For async initialization tasks
        print("Async resource initialization for worker.")
        self.cache = await setup_cache()

    @adapter.api
    def predict(self, text) -> str:
        # Use initialized resources in API endpoints
        return self.db_connection.query(text)
