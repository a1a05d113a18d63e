"""The dashboard's parts: the only place in `audit` that imports streamlit."""
