"""Routes: each module offers `router(context) -> APIRouter`, and `app.py` lists it. One that speaks another
interface's errors also offers `ERRORS`, from path to `errors.Form`."""
